"""Safeguards of learning: likely minors are refused, and the stated consent is stored with the person.

Neither is a lock: an age estimate is off by years, and a statement of consent is a record, not proof. They prevent
accidents and document what was stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celebctl_runtime.errors import NotFoundError, PolicyError, UsageError
from celebctl_runtime.files import sha256_file
from celebctl_runtime.paths import expanded

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import Face

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
