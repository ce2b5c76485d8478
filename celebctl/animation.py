"""Animations: images of one noise, drawn with prompts that turn into one another.

Every frame starts from the same noise, and lies between two key prompts: the encodings of both are mixed
(`Request.toward`, `Request.blend`). A person who is in all prompts therefore stays the same, and the rest of the image
changes no more than the prompts do. Two people in the key prompts turn into one another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from celebctl.bundles import mentioned_people
from celebctl_runtime.errors import UsageError, out_of_range
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.prompting.likeness import FULL_LIKENESS
from celebctl_runtime.prompting.prompt import mentioned
from celebctl_runtime.request import Request

if TYPE_CHECKING:
    from celebctl.pipeline import Pipeline
    from celebctl_runtime.picture import GeneratedImage

Route = Literal["loop", "boomerang", "once"]
Easing = Literal["cosine", "linear"]

MAX_FRAMES = 240
MIN_FPS, MAX_FPS = 0.1, 60
MAX_HOLD = 10  # seconds
MAX_PIXELS = 1 << 27  # of all frames together, before any enlargement; 400 MB
_DIGITS = 6  # of a blend: the way back has the frames of the way there


@dataclass(frozen=True)
class Timing:
    """How an animation moves through its key prompts.

    Attributes:
        frames: 2 to 240, and at least one per key prompt and, of a boomerang, on the way back.
        fps: Frames per second, 0.1 to 60.
        route: "loop" goes from the last prompt straight to the first, "boomerang" back through all others, and both
            repeat without end; "once" stops at the last.
        easing: "cosine" starts slowly at a key prompt and arrives slowly at the next (ease-in-out), "linear" does not.
        hold: Seconds added to each frame that is a key prompt, 0 to 10.

    Raises:
        UsageError: A value is out of range.
    """

    frames: int = 24
    fps: float = 12.0
    route: Route = "loop"
    easing: Easing = "cosine"
    hold: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.frames <= MAX_FRAMES:
            raise out_of_range("frames", self.frames, 2, MAX_FRAMES)
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise UsageError(
                f"fps {self.fps:g} is out of range", f"use {MIN_FPS} to {MAX_FPS}", reason="fps_out_of_range"
            )
        if not 0 <= self.hold <= MAX_HOLD:
            raise out_of_range("hold", self.hold, 0, MAX_HOLD)


@dataclass(frozen=True)
class Keyframe:
    """A frame between key prompts number `first` and `second`: the share of the second is `blend`, 0 to 1 exclusive.

    At a key prompt both numbers are the same.
    """

    first: int
    second: int
    blend: float = 0.0


@dataclass(frozen=True, eq=False)
class Animation:
    """A drawn animation.

    Attributes:
        images: The different images of the animation, in the order in which they first appear.
        order: For each frame the number of its image, from 0.
        seconds: For each frame how long it is shown.
        repeats: Whether it repeats without end.
    """

    images: list["GeneratedImage"]
    order: list[int]
    seconds: list[float]
    repeats: bool


def keyframes(keys: int, timing: Timing) -> list[Keyframe]:
    """The frames of an animation of `keys` prompts; every prompt is one of them.

    Raises:
        UsageError: There are fewer than two prompts, or too few frames for them.

    Example:
        >>> frames = keyframes(2, Timing(frames=4, easing="linear"))
        >>> [(one.first, one.second, one.blend) for one in frames]
        [(0, 0, 0.0), (0, 1, 0.5), (1, 1, 0.0), (0, 1, 0.5)]
    """
    if keys < 2:
        raise UsageError("an animation needs at least two prompts", "give another prompt", reason="one_key_prompt")
    stops = list(range(keys))
    if timing.route == "boomerang":
        stops += stops[-2:0:-1]
    if timing.route != "once":
        stops.append(0)
    segments, moving = len(stops) - 1, timing.frames - (timing.route == "once")
    if moving < segments:
        least = segments + (timing.route == "once")
        raise UsageError(
            f"{timing.frames} frames are too few for {keys} prompts",
            f"use {least} or more",
            reason="too_few_frames",
            least=least,
        )
    frames: list[Keyframe] = []
    for number, (first, second) in enumerate(pairwise(stops)):
        length = moving // segments + (number < moving % segments)
        frames += [_between(first, second, _eased(k / length, timing.easing)) for k in range(length)]
    return frames + [Keyframe(stops[-1], stops[-1])] * (timing.route == "once")


def frame_requests(request: Request, prompts: Sequence[str], frames: Sequence[Keyframe]) -> list[Request]:
    """The request of each frame: `request` with its prompts, and of a likeness by name what these mention."""
    requests = [
        replace(
            request,
            prompt=prompts[one.first],
            toward="" if one.first == one.second else prompts[one.second],
            blend=one.blend,
        )
        for one in frames
    ]
    if isinstance(request.likeness, tuple):
        names = dict(request.likeness)
        if set(mentioned(" ".join([*prompts, request.negative]), names)) == set(names):  # else drawing raises
            return [_with_own_likeness(one, request.likeness) for one in requests]
    return requests


def _with_own_likeness(request: Request, likeness: tuple[tuple[str, float], ...]) -> Request:
    names = mentioned(" ".join((request.prompt, request.toward, request.negative)), dict(likeness))
    return replace(request, likeness=tuple(pair for pair in likeness if pair[0] in names) or FULL_LIKENESS)


def animate(
    pipe: "Pipeline",
    request: Request,
    prompts: Sequence[str],
    timing: Timing | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Animation:
    """Draw an animation. People of the library are drawn without being added to the bundle.

    Args:
        pipe: Draws the frames.
        request: Seed, steps, size and so on of all frames; its prompt is not used.
        prompts: Two or more key prompts.
        timing: See `Timing`.
        progress: Called after every step; `step` and `total` count steps of all images.

    Raises:
        UsageError: A value is out of range.
        NotFoundError: A <name> is unknown.
        SetupError: The bundle has too few free rows for people who are not in it.

    Example:
        >>> from celebctl import Pipeline
        >>> pipe = Pipeline(bundle_path, device="cpu")
        >>> timing = Timing(frames=4)
        >>> made = animate(pipe, Request("", seed=7, steps=2), ["alice", "alice on the beach"], timing)
        >>> len(made.images), made.order
        (3, [0, 1, 2, 1])
    """
    timing = timing or Timing()
    frames = keyframes(len(prompts), timing)
    numbers = {one: number for number, one in enumerate(dict.fromkeys(frames))}
    requests = frame_requests(request, prompts, list(numbers))
    _check_pixels(pipe, request, len(requests))
    stored = {name: entry.digest for name, entry in pipe.bundle.manifest.identities.items()}
    mentioned = mentioned_people(pipe.bundle, pipe.library, [*prompts, request.negative])
    others = [person for person in mentioned if stored.get(person.name) != person.digest]
    images = pipe.generate(requests, overrides=others, progress=progress)
    seconds = [1 / timing.fps + timing.hold * (one.first == one.second) for one in frames]
    return Animation(images, [numbers[one] for one in frames], seconds, timing.route != "once")


def _check_pixels(pipe: "Pipeline", request: Request, images: int) -> None:
    height, width = pipe.bundle.manifest.size.native
    pixels = (request.width or width) * (request.height or height)
    if images * pixels > MAX_PIXELS:
        most = MAX_PIXELS // pixels
        raise UsageError(
            f"{images} images of {pixels / 1e6:.1f} megapixels are too many for one animation",
            f"use fewer frames, {most} different images at most, or a smaller size",
            reason="animation_too_large",
            most=most,
        )


def _between(first: int, second: int, share: float) -> Keyframe:
    """The same frame on the way there and back."""
    if first > second:
        first, second, share = second, first, 1 - share
    share = round(share, _DIGITS)
    if share in (0, 1):
        stop = second if share else first
        return Keyframe(stop, stop)
    return Keyframe(first, second, share)


def _eased(share: float, easing: Easing) -> float:
    return share if easing == "linear" else (1 - math.cos(math.pi * share)) / 2
