"""Drawing the celebrities of a basis: to see whom the model knows, and what they look like to the recogniser.

Thousands of pictures, hours for a large model: how long it takes is said, and what is drawn is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .console import CliConsole
from .loading import face_folder

if TYPE_CHECKING:
    from celebctl.basis.name_filtering import Rendered
    from celebctl_models.checkpoints.diffusion import DiffusionParts

    from .basis import BasisContext

_TRIED = 20.0  # seconds of drawing after which the rest can be foretold


def render(console: CliConsole, bench: "BasisContext", names: Sequence[str]) -> "list[Rendered]":
    """Every name's pictures as the recogniser sees them; goes on where an earlier run stopped."""
    from functools import partial

    from celebctl.basis.name_filtering import PICTURES, hash_of_faces, log_of, pictures_at_once, render_names
    from celebctl.learning.sampling import draw
    from celebctl_models.faces.analysis import InsightFaceAnalyser

    parts = cast("DiffusionParts", bench.parts)  # who draws has opened all of it
    folder = face_folder_of(bench)
    analyser = InsightFaceAnalyser(folder)
    log = log_of(bench.library.cache(), parts, hash_of_faces(folder))
    height, width = parts.native_size
    console.info(
        f"{len(names):,} names, {PICTURES} pictures of {width} x {height} each, {parts.card.defaults['steps']} steps;"
        " Ctrl-C stops, and what is drawn is kept"
    )
    try:
        with console.progress("drawing the names") as report:
            return render_names(
                names, partial(draw, parts, people={}), analyser, log,
                batch=pictures_at_once(parts.native_size), on_name=Clock(console, report).tick,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.info("what is drawn is kept: the same command goes on from here")
        raise


def measure_faces(console: CliConsole, bench: "BasisContext", chosen: Path | None) -> Path:
    """Measure the celebrities' faces of the names in `chosen`, else the model's own; returns the file in the cache.

    Raises InvalidInputError when the model draws hardly any face.
    """
    from celebctl.basis.celebrities import faces_file, faces_of, save_faces
    from celebctl.basis.name_filtering import hash_of_faces
    from celebctl.basis.names import read_names, shared_pairs

    names = shared_pairs(bench.parts.tokenizers, read_names(bench.parts, chosen))[0].names
    found = faces_of(render(console, bench, names))
    path = faces_file(bench.library.cache(), bench.parts.table_hash, hash_of_faces(face_folder_of(bench)))
    save_faces(found, bench.parts.table_hash, path)
    console.info(f"{len(found.names):,} of {len(names):,} names have a face")
    if found.framing is not None:
        console.info(f"faces are drawn at {found.framing}")
    return path


def face_folder_of(bench: "BasisContext") -> Path:
    """The face models that go with the model."""
    return face_folder(bench.settings, str(bench.parts.path), bench.face_models)


@dataclass
class Clock:
    """Foretells how long drawing takes, from the names drawn since it was started; tells it once, then shows it."""

    console: CliConsole
    report: Callable[[int, int, str], None]
    now: Callable[[], float] = time.monotonic
    told: bool = field(default=False, init=False)
    started: tuple[float, int] | None = field(default=None, init=False)

    def tick(self, done: int, of: int, name: str) -> None:
        """Take note that `done` names of all are drawn, `name` the last."""
        if self.started is None:
            self.started = self.now(), done
            self.report(done, of, name)
            return
        began, before = self.started
        spent = self.now() - began
        left = spent / max(1, done - before) * (of - done)
        if not self.told and spent >= _TRIED:
            self.told = True
            self.console.info(f"this takes about {in_words(left)} more")
        self.report(done, of, f"{in_words(left)} left, {name}")


def in_words(seconds: float) -> str:
    """45 s, 12 min, 3 h 5 min"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
