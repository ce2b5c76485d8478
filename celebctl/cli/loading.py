"""Loading the model a command works with, and showing progress of the library on the console."""

import contextlib
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.model import Model
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions
    from celebctl_runtime.progress import Progress, ProgressCallback

#: Metrics that are shown, with their format.
_SHOWN = {
    "loss": "loss {:.3f}",
    "likeness": "likeness {:.2f}",
    "validation_loss": "validation {:.4f}",
    "average_loss": "average celebrity {:.4f}",
    "faces": "{:,.0f} faces",
}


def choose_model(
    settings: "Settings",
    library: "Library",
    model: str | None,
    device: str | None = None,
    face_models: str | None = None,
    checkpoint: "CheckpointOptions | None" = None,
) -> "Model":
    """The model from the options and the settings; nothing is loaded yet."""
    from celebctl.model import Model

    return Model.load(
        str(settings.text("model", model)),
        device=str(settings.text("device", device)),
        face_models=settings.text("face_models", face_models),
        library=library,
        options=checkpoint,
    )


@contextlib.contextmanager
def progress_bar(console: CliConsole, title: str) -> "Generator[ProgressCallback]":
    """A progress bar that shows `Progress` events."""
    with console.progress(title) as report:

        def show(now: "Progress") -> None:
            report(now.step, now.total, progress_text(now.metrics))

        yield show


def progress_text(metrics: Mapping[str, float]) -> str:
    """loss 0.213  likeness 0.71  12 s left"""
    parts = [form.format(metrics[name]) for name, form in _SHOWN.items() if name in metrics]
    if "eta_seconds" in metrics:
        parts.append(f"{duration(metrics['eta_seconds'])} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 5 min"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
