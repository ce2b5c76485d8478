"""Who is learned: likely minors are refused, and what was said about consent is kept with the person.

Neither is a lock. An estimate of an age is off by years, whoever has the code can take both out, and a word of consent
is only as good as who gives it. They are there so that nobody does this by accident, and so that it can be looked up.
What this module does not know: how faces are found, where people are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from celebctl_runtime.errors import NotFoundError, PolicyError, UsageError
from celebctl_runtime.files import sha256_file

if TYPE_CHECKING:
    from celebctl_models.faces.analysis import Face

ADULT = 18  # years, as estimated
_WAYS = "say self, synthetic, or signed:FILE with what they signed"


def refuse_minor(face: Face, photo: str) -> None:
    """Raise PolicyError for a face that is likely a child's; a face whose age nobody estimates passes.

    `photo` names the file in the message.
    """
    if face.age is not None and face.age < ADULT:
        raise PolicyError(
            f"the face in {photo} looks about {face.age} years old, and celebctl does not learn minors",
            "the estimate is rough: for an adult, try another photo of theirs",
        )


def consent_record(said: str | None) -> str:
    """What is kept of a --consent: that nothing was said, who gave it, or the SHA-256 of what was signed.

    The signed file itself is not kept. Raises UsageError for other words, NotFoundError without the file.
    """
    if said is None:
        return "not stated"
    if said == "self":
        return "self: given by the person in the photo"
    if said == "synthetic":
        return "synthetic: nobody real is shown"
    kind, _, file = said.partition(":")
    if kind != "signed" or not file:
        raise UsageError(f"--consent {said} means nothing", _WAYS)
    path = Path(file).expanduser()
    if not path.is_file():
        raise NotFoundError(f"there is no signed consent at {file}", _WAYS)
    return f"signed: sha256 {sha256_file(path)}"
