"""The safety checker of the commands that draw images: an image that it refuses is not written."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.settings import Settings
    from celebctl_runtime.picture import GeneratedImage
    from celebctl_runtime.safety_checker import SafetyChecker


def choose_checker(settings: "Settings", option: Path | None = None) -> "SafetyChecker | None":
    """The safety checker of the option or the settings, if any; raises as `SafetyChecker`."""
    path = settings.text("safety_checker", None if option is None else str(option))
    if not path:
        return None
    from celebctl_runtime.paths import expanded
    from celebctl_runtime.safety_checker import SafetyChecker

    return SafetyChecker(expanded(path), float(settings.text("safety_threshold") or 0))


def screen(
    console: CliConsole,
    checker: "SafetyChecker | None",
    images: "Iterable[GeneratedImage]",
    refused: list[dict[str, Any]],
) -> "Iterator[GeneratedImage]":
    """The images that may be written; `refused` receives seed and score of the others.

    Raises PolicyError when none was left.
    """
    from celebctl_runtime.errors import PolicyError

    passed = 0
    for image in images:
        score = 0.0 if checker is None else checker.score(image.image)
        if checker is None or not checker.refuses(score):
            passed += 1
            yield image
            continue
        refused.append({"seed": image.request.seed, "score": round(score, 3)})
        problem = f"seed {image.request.seed}: the safety checker's score is {score:.2f}, the limit {checker.threshold}"
        console.warn(f"not written, {problem}")
    if refused and not passed:
        worst = max(one["score"] for one in refused)
        raise PolicyError(
            f"no image was written: the safety checker's score is {worst:.2f}, the limit {checker.threshold:g}"
            if checker is not None and len(refused) == 1
            else f"no image was written: the safety checker refused all {len(refused)}",
            "change the prompt, or use another --seed",
            reason="unsafe_image",
        )
