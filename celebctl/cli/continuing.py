"""What to type after Ctrl-C to draw the images that are missing."""

import contextlib
import re
import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl_runtime.picture import GeneratedImage
    from celebctl_runtime.request import Request

_REPLACED = ("--seed", "-s", "--count", "-n")
_REPLACED_WITH_VALUE = re.compile(r"--(seed|count)=.*|-[sn]=?\d+")
Counter = Callable[["Iterable[GeneratedImage]"], "Iterator[GeneratedImage]"]


@contextlib.contextmanager
def suggest_continuing(console: CliConsole, requests: "Sequence[Request]") -> Generator[Counter]:
    """When the block is interrupted, suggest the same command with the seeds of the images that it has not saved.

    Yields a function that passes images on and counts them: an image is saved when the next one is asked for.
    """
    saved = 0

    def counted(images: "Iterable[GeneratedImage]") -> "Iterator[GeneratedImage]":
        nonlocal saved
        for image in images:
            yield image
            saved += 1

    try:
        yield counted
    except KeyboardInterrupt:
        missing = requests[saved:]
        if missing:
            count = len(missing) if len(requests) > 1 else None
            console.suggest(shlex.join(continued(console.argv, missing[0].seed, count)), "to go on")
        raise


def continued(argv: Sequence[str], seed: int, count: int | None) -> list[str]:
    """The command of `argv` with this seed and, unless it is None, this number of images.

    Example:
        >>> continued(["gen", "alice", "-n", "5", "--seed=7", "--steps", "4"], 9, 3)
        ['celebctl', 'gen', 'alice', '--steps', '4', '--seed', '9', '--count', '3']
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    words, kept = iter(argv[:end]), ["celebctl"]
    for word in words:
        if word in _REPLACED:
            next(words, None)
        elif not _REPLACED_WITH_VALUE.fullmatch(word):
            kept.append(word)
    return [*kept, "--seed", str(seed), *([] if count is None else ["--count", str(count)]), *argv[end:]]
