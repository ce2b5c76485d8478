"""Choosing the names behind a model's celeb basis, and measuring how the model draws them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from celebctl_runtime.errors import UsageError
from celebctl_runtime.progress import ProgressCallback, ignore_progress

from .basis import build_basis
from .celebrities import cached_faces_path, faces_from_renders, save_faces
from .name_filtering import (
    IMAGES_PER_NAME,
    PROMPT,
    FilteredNames,
    RenderedName,
    filter_names,
    render_batch_size,
    render_log_path,
    render_names,
)
from .names import NameReport, name_report, names_file, read_name_list, read_names, shared_pairs
from .report import chosen_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl.model import Model

LOCK = "celeb-basis"  # held while names are chosen and measured

_log = logging.getLogger(__name__)


def choose_names(
    model: Model,
    names: Path | None,
    *,
    check: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> None:
    """Choose the names behind a model's basis and build the basis; stored only if that succeeds.

    Args:
        model: The model, whose library stores the choice.
        names: A text file with one "first last" a line; None returns to the model's own list, or with ``check``
            filters it.
        check: Draw every name and keep those the model has a face for (name_filtering.py).
        overwrite: Replace names chosen earlier.
        progress: Of drawing.

    Raises:
        UsageError: Other names were chosen already and ``overwrite`` is not given.
        InvalidInputError: Too few names remain.
    """
    choice = chosen_names(model.library, model.tables)
    source = names_file(model.tables, names)
    listed = read_name_list(source)
    same = names is not None and not check and choice.file is not None and read_name_list(choice.file) == listed
    if choice.file is not None and not same and not overwrite:
        raise UsageError(
            f"other names were chosen for this model already: {choice.path}",
            "pass overwrite=True to replace them; identities keep the basis they were learned with",
            reason="names_chosen", path=choice.path,
        )  # fmt: skip
    if names is None and not check:
        choice.remove()
    else:
        reports: Sequence[NameReport] = []
        if check:
            probe = probe_names(model, source, progress=progress)
            reports, listed = probe.reports, list(probe.result.kept)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "names.txt"
            path.write_text("\n".join(listed), encoding="utf-8")
            build_basis(model.tables, model.library.cache(), names=path)
        choice.save(listed, source, reports)
    model.refresh()


@dataclass(frozen=True, eq=False)
class NameProbe:
    """Which names of a list a model draws as one person each.

    Attributes:
        model: The model's name.
        result: Names kept and dropped, with their scores.
        reports: What became of the list, for each tokenizer.
    """

    model: str
    result: FilteredNames
    reports: Sequence[NameReport]

    def text(self) -> str:
        """A list of names for ``choose_names``: kept names with their separation, dropped ones as comments."""
        result = self.result
        scored = sorted(result.kept, key=lambda name: -result.separation[name])
        lines = [f"# {len(scored)} names that {self.model} draws as one person each, with their separation"]
        lines += [f"{name}\t{result.separation[name]:.3f}" for name in scored]
        lines.append(f"# dropped: separation up to {result.min_separation:.3f}, or for another reason")
        lines += [
            f"# {name}\t{result.separation.get(name, float('nan')):.3f}\t{reason}"
            for name, reason in sorted(result.dropped.items())
        ]
        return "\n".join(lines) + "\n"


def probe_names(
    model: Model,
    names: Path | None = None,
    *,
    prompt: str = PROMPT,
    progress: ProgressCallback = ignore_progress,
) -> NameProbe:
    """Draw every name four times and keep those the model has a face of its own for (name_filtering.py).

    Args:
        model: The model.
        names: A text file with one "first last" a line; None: the model's own list, else celebctl's.
        prompt: Text with {} for the name.
        progress: Of drawing. An interrupted run continues where it stopped.

    Raises:
        UsageError: The prompt has no place for the name.
        InvalidInputError: The model draws too few faces to compare.
    """
    if prompt.count("{}") != 1:
        problem = f"the prompt {prompt!r} has no place for the name"
        raise UsageError(problem, "write {} once where the name goes", reason="prompt_without_name")
    listed = read_name_list(names_file(model.tables, names))
    pairs = shared_pairs(model.tables.tokenizers, listed)
    result = filter_names(draw_names(model, pairs[0].names, progress, prompt))
    reports = [name_report(listed, one).without(result.dropped) for one in pairs]
    return NameProbe(model.name, result, reports)


def require_faces_useful(model: Model, names: Path | None, *, overwrite: bool = False) -> None:
    """Raise UsageError when learning with these names would not use measured faces, unless ``overwrite``."""
    card = model.tables.card
    own_names = names is None and model.chosen_names is None
    if not overwrite and ((card.mapper_file is not None and own_names) or card.features_file is not None):
        raise UsageError(
            f"learning does not use measured faces with {model.name}, which has better files of its own",
            "pass overwrite=True to measure them nevertheless", reason="faces_not_needed",
        )  # fmt: skip


def measure_faces(
    model: Model,
    names: Path | None = None,
    *,
    progress: ProgressCallback = ignore_progress,
) -> Path:
    """Draw the celebrities and store their features and framing in the cache, where learning finds them.

    Args:
        model: The model.
        names: The list to draw; None takes the names chosen for the model.
        progress: Of drawing.

    Returns:
        The file in the cache.

    Raises:
        InvalidInputError: The model draws hardly any face.
    """
    names = names or model.chosen_names
    drawn = shared_pairs(model.tables.tokenizers, read_names(model.tables, names))[0].names
    faces = faces_from_renders(draw_names(model, drawn, progress))
    path = cached_faces_path(model.library.cache(), model.tables.table_hash, model.face_models)
    save_faces(faces, model.tables.table_hash, path)
    _log.info("%d of %d names have a face", len(faces.names), len(drawn))
    if faces.framing is not None:
        _log.info("faces are drawn at %s", faces.framing)
    model.refresh()
    return path


def draw_names(
    model: Model, names: Sequence[str], progress: ProgressCallback = ignore_progress, prompt: str = PROMPT
) -> list[RenderedName]:
    """Draw every name and measure the faces; continues an interrupted run. Hours for a large model."""
    from celebctl.learning.sampling import draw

    parts = model.parts
    height, width = parts.native_size
    steps = parts.card.defaults["steps"]
    _log.info(
        "%d names, %d images of %d x %d each, %s steps; an interrupted run continues where it stopped",
        len(names), IMAGES_PER_NAME, width, height, steps,
    )  # fmt: skip
    log = render_log_path(model.library.cache(), parts, model.face_models, prompt)

    def images(some: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        return draw(parts, [prompt.replace("{}", name) for name in some], seeds, {})

    size = render_batch_size(parts.native_size)
    return render_names(names, images, model.analyser, log, batch_size=size, progress=progress)
