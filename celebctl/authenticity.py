"""What an image file says about itself: credentials, watermark and recipe, and whether they agree. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from celebctl_runtime.credentials import Credentials, has_credentials, read_credentials
from celebctl_runtime.errors import CelebctlError, SetupError
from celebctl_runtime.image_files import read_image
from celebctl_runtime.picture import watermark_payload
from celebctl_runtime.recipes.reading import recipe_in
from celebctl_runtime.recipes.recipe import Recipe
from celebctl_runtime.watermark import PUBLIC_KEY, Watermark, find_watermark

#: "generated": marks of a generated image, none of which contradicts another; "changed": a mark that is broken or
#: contradicts another; "other": credentials that do not say that the image was generated; "unmarked": nothing found.
Verdict = Literal["generated", "changed", "other", "unmarked"]


@dataclass(frozen=True)
class Examination:
    """What was found in one file.

    Attributes:
        path: The file.
        credentials: None where there are none, or they cannot be read.
        unread_credentials: Whether there are credentials that cannot be read without c2pa-python.
        watermark: None where there is none.
        recipe: None where there is none, or it is damaged.
        recipe_error: Why the recipe cannot be read, "" otherwise.
        contradictions: What does not agree, a sentence each.
    """

    path: Path
    credentials: Credentials | None
    unread_credentials: bool
    watermark: Watermark | None
    recipe: Recipe | None
    recipe_error: str = ""
    contradictions: Sequence[str] = field(default_factory=list[str])

    @property
    def verdict(self) -> Verdict:
        """The findings in one word."""
        if self.contradictions:
            return "changed"
        generated = self.credentials is not None and self.credentials.generated
        if generated or self.watermark or self.recipe:
            return "generated"
        return "other" if self.credentials or self.unread_credentials else "unmarked"


def examine(path: Path | str, keys: Sequence[bytes] = (PUBLIC_KEY,), anchors: Sequence[bytes] = ()) -> Examination:
    """Look for the marks of generated images in any image file.

    Args:
        path: The file; nothing it refers to is fetched.
        keys: Keys of watermarks to look for, in this order.
        anchors: PEM certificates that are trusted.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: It is not a readable image.

    Example:
        >>> from celebctl.authenticity import examine
        >>> from celebctl.pipeline import Pipeline
        >>> output = Pipeline(bundle_path, device="cpu")("alice", seed=7, steps=4)
        >>> (file,) = output.save(folder / "alice.png", scale=2)
        >>> examine(file).verdict
        'generated'
    """
    file, path = read_image(path), Path(path)
    credentials, unread = None, False
    try:
        credentials = read_credentials(file.content, anchors)
    except SetupError:
        unread = has_credentials(file.content)
    recipe, error = None, ""
    try:
        recipe = recipe_in(file, path)
    except CelebctlError as problem:
        error = "" if problem.reason == "no_recipe" else problem.problem
    mark = next(filter(None, (find_watermark(file.image, key) for key in keys)), None)
    found = Examination(path, credentials, unread, mark, recipe, error)
    return Examination(path, credentials, unread, mark, recipe, error, _contradictions(found))


def _contradictions(found: Examination) -> list[str]:
    sentences: list[str] = []
    credentials, mark, recipe = found.credentials, found.watermark, found.recipe
    if credentials is not None and credentials.state == "invalid":
        sentences.append(f"the file was changed after it was signed ({', '.join(credentials.problems)})")
    if found.recipe_error:
        sentences.append(found.recipe_error)
    if recipe is None or recipe.format != "celebctl":
        return sentences
    stated = recipe.record.get("watermark")
    if mark is not None and mark.payload not in (None, watermark_payload(recipe.values)):
        sentences.append("the watermark belongs to another recipe")
    elif mark is None and stated == "public":
        sentences.append("the recipe says that there is a watermark, and there is none")
    if credentials is not None and not credentials.generated:
        sentences.append("the recipe says that the image was generated, and the credentials do not")
    return sentences


def findings(found: Examination) -> dict[str, Any]:
    """JSON-ready: path, verdict, contradictions; credentials, watermark and recipe, null where there are none."""
    credentials, mark, recipe = found.credentials, found.watermark, found.recipe
    return {
        "path": str(found.path),
        "verdict": found.verdict,
        "contradictions": list(found.contradictions),
        "credentials": None if credentials is None else {
            "state": credentials.state, "signer": credentials.signer, "self_signed": credentials.self_signed,
            "generator": credentials.generator, "source_type": credentials.source_type,
            "actions": list(credentials.actions), "ingredients": list(credentials.ingredients),
            "problems": list(credentials.problems), "forbids_training": credentials.forbids_training,
        },
        "unread_credentials": found.unread_credentials,
        "watermark": None if mark is None else {
            "payload": None if mark.payload is None else f"{mark.payload:08x}",
            "score": round(mark.score, 1), "scale": round(mark.scale, 3),
        },
        "recipe": None if recipe is None else {"format": recipe.format, "program": recipe.program},
    }  # fmt: skip
