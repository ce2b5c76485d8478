"""Safeguards of learning: likely minors and photos that must not be trained on are refused, consent is stored.

None is a lock: an age estimate is off by years, credentials are easily removed from a photo, and a statement of consent
is a record, not proof. They prevent accidents and document what was stated.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from celebctl_runtime.credentials import has_credentials, read_credentials
from celebctl_runtime.dates import record_time
from celebctl_runtime.errors import NotFoundError, PolicyError, SetupError, UsageError
from celebctl_runtime.files import sha256_file
from celebctl_runtime.paths import expanded

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import Face

_log = logging.getLogger(__name__)
ADULT = 18  # years, as estimated
_FORMS = "use self, synthetic, or signed:FILE with the signed statement"


def refuse_minor(face: Face, photo: str) -> None:
    """Raise PolicyError for a face that is likely a minor's; a face without an age estimate passes.

    `photo` names the file in the message.
    """
    if face.age is not None and face.age < ADULT:
        raise PolicyError(
            f"the face in {photo} looks about {face.age} years old, and celebctl does not learn minors",
            "the estimate is rough: for an adult, try another photo",
            reason="likely_minor",
            age=face.age,
        )


def training_forbidden(content: bytes, photo: str) -> PolicyError | None:
    """The error for a photo whose content credentials forbid training or inference; None for other photos.

    A warning is logged for credentials that cannot be read because c2pa-python is not installed.

    Args:
        content: The file.
        photo: Its name in the message.

    Returns:
        An error with the reason "training_forbidden" and the value ``photo``.
    """
    try:
        credentials = read_credentials(content)
    except SetupError:
        if has_credentials(content):
            _log.warning(
                "%s has content credentials; whether they forbid training cannot be read without c2pa-python", photo
            )
        return None
    if credentials is None or not credentials.forbids_training:
        return None
    owner = f", signed by {credentials.signer}," if credentials.signer else ""
    return PolicyError(
        f"the content credentials in {photo}{owner} do not allow training on it",
        "ask its owner, or use another photo",
        reason="training_forbidden",
        photo=photo,
    )


def consent_record(consent: str | None) -> str:
    """The record of a consent: None, "self", "synthetic" or "signed:FILE", of which the SHA-256 is kept.

    Raises UsageError for other texts, NotFoundError when the file is missing.

    Example:
        >>> consent_record("self")
        'self: given by the person in the photo'
    """
    if consent is None:
        return "not stated"
    if consent == "self":
        return "self: given by the person in the photo"
    if consent == "synthetic":
        return "synthetic: the photo shows no real person"
    kind, _, file = consent.partition(":")
    if kind != "signed" or not file:
        raise UsageError(f"invalid consent {consent!r}", _FORMS, reason="consent_form", consent=consent)
    path = expanded(file)
    if not path.is_file():
        raise NotFoundError(f"there is no signed consent {file}", _FORMS, reason="consent_form", consent=consent)
    return f"signed: sha256 {sha256_file(path)}"


def statement_date() -> str:
    """Today as YYYY-MM-DD in UTC, stored beside a consent; SOURCE_DATE_EPOCH takes its place where it is set.

    Example:
        >>> len(statement_date())
        10
    """
    return record_time().date().isoformat()
