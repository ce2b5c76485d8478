"""Grids of one prompt with settings that vary along two axes, and contact sheets of images that exist."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from celebctl.grid import check_cells, grid, pad, titled_grid
from celebctl.jobs.axes import MAX_CELLS, Axis, grid_jobs
from celebctl.jobs.plan import Drawer
from celebctl.jobs.run import run_jobs, run_seed
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.files import atomic_write, refuse_existing
from celebctl_runtime.image_files import read_image
from celebctl_runtime.picture import Marks, read_request
from celebctl_runtime.progress import ProgressCallback, ignore_progress
from celebctl_runtime.request import Request
from celebctl_runtime.safety_checker import SafetyChecker

CHUNK = "celebctl_grid"  # the text chunk of a grid's PNG
SCHEMA = 1
CELL, MAX_IMAGES = 256, 1000
_LABEL_LINES = 3


class GridOptions(TypedDict, total=False):
    """How the single images of a grid are written: as for `celebctl.jobs.run.RunOptions`."""

    overwrite: bool
    marks: Marks
    checker: SafetyChecker | None


@dataclass(frozen=True, eq=False)
class PromptGrid:
    """The images of a grid.

    Attributes:
        settings: What all cells have, with the prompt before anything in it was replaced.
        x: What varies along a row.
        y: What varies from row to row; None for one row.
        images: RGB images by row.
        requests: For each image the complete request, in the order of reading.
        record: What drew them: model, bundle, engine, versions.
    """

    settings: Mapping[str, Any]
    x: Axis
    y: Axis | None
    images: Sequence[Sequence[Image.Image]]
    requests: Sequence[Request]
    record: Mapping[str, Any]

    def sheet(self, cell: int = CELL) -> Image.Image:
        """The labelled sheet, on which the longer side of an image has `cell` pixels.

        Raises UsageError for too large a sheet.
        """
        check_cells(len(self.requests), cell, MAX_CELLS)
        rows = [""] if self.y is None else [self.y.label(value) for value in self.y.values]
        columns = [self.x.label(value) for value in self.x.values]
        size = _cell_of(self.images[0][0], cell)
        return titled_grid(self.images, columns, rows, heading=self._heading(), cell=size)

    def save(self, path: Path, *, cell: int = CELL, overwrite: bool = False) -> Path:
        """Write the sheet as a PNG that carries its recipe, in the text chunk "celebctl_grid".

        Raises:
            UsageError: The file exists and `overwrite` is false, or the sheet would be too large.
            SetupError: The file cannot be written.
        """
        refuse_existing(path, overwrite)
        sheet, info = self.sheet(cell), PngInfo()
        info.add_text(CHUNK, json.dumps(self._recipe()))
        atomic_write(path, lambda file: sheet.save(file, "PNG", pnginfo=info), overwrite=overwrite)
        return path

    def _heading(self) -> str:
        varied = {self.x.name, *(() if self.y is None else (self.y.name,))}
        return self.settings["prompt"] + ("" if "seed" in varied else f" (seed {self.settings['seed']})")

    def _recipe(self) -> dict[str, Any]:
        axes = {"x": self.x, **({} if self.y is None else {"y": self.y})}
        return {
            "schema": SCHEMA,
            "settings": dict(self.settings),
            "axes": {side: {"name": axis.name, "values": list(axis.values)} for side, axis in axes.items()},
            "requests": [request.to_json() for request in self.requests],
            "record": dict(self.record),
        }


def draw_grid(
    drawer: Drawer,
    settings: Mapping[str, Any],
    axes: Sequence[Axis],
    *,
    folder: Path | None = None,
    progress: ProgressCallback = ignore_progress,
    **options: Unpack[GridOptions],
) -> PromptGrid:
    """Draw the images of a grid.

    Args:
        drawer: The pipeline to draw with.
        settings: The entries of a job (`celebctl.jobs.job_file.FIELDS`). Without a seed, all cells have that of the
            journal in `folder`, else a random one.
        axes: What varies along a row, and, if anything, from row to row.
        folder: Keeps the single images and their journal: those that are there are not drawn again.
        progress: As for `run_jobs`.
        options: See `GridOptions`.

    Raises:
        UsageError: An axis, a value or the number of cells does not fit.
        CelebctlError: What kept a cell from being drawn.
    """
    x, y = axes[0], axes[1] if len(axes) > 1 else None
    with tempfile.TemporaryDirectory(prefix="celebctl-grid-") as temporary:
        place = Path(temporary) if folder is None else folder
        seed = run_seed(place, settings.get("seed"))
        settings = {**settings, "seed": seed}
        jobs = grid_jobs(settings, x, y)
        report = run_jobs(drawer, jobs, place, progress=progress, seed=seed, **options)
        for image in report.failed:
            raise image.error or AssertionError(image)
        images = [read_image(image.path).image for image in report.images]
        _, record = read_request(report.images[0].path)
    width = len(x.values)
    rows = [images[start : start + width] for start in range(0, len(images), width)]
    return PromptGrid(settings, x, y, rows, [image.request for image in report.images], record)


def contact_sheet(paths: Sequence[Path], *, columns: int | None = None, cell: int = CELL) -> Image.Image:
    """A sheet of image files, each with its seed and prompt, or its file name where it carries no recipe.

    Args:
        paths: PNG, JPEG or WebP files, up to 1000.
        columns: Images in a row; None makes the sheet about as wide as high.
        cell: The longer side of an image in pixels.

    Raises:
        NotFoundError: A file cannot be read.
        InvalidInputError: A file is not an image.
        UsageError: There are too many images, or the sheet would be too large.
    """
    check_cells(len(paths), cell, MAX_IMAGES)
    size: tuple[int, int] | None = None
    images: list[Image.Image] = []
    for path in paths:
        image = read_image(path).image
        size = size or _cell_of(image, cell)
        images.append(pad(image, size))
    wide = columns or max(1, round(len(paths) ** 0.5))
    labels = [_label(path) for path in paths]
    rows = [slice(start, start + wide) for start in range(0, len(images), wide)]
    return grid(
        [images[row] for row in rows], [labels[row] for row in rows], cell=size or (cell, cell), lines=_LABEL_LINES
    )


def _label(path: Path) -> str:
    try:
        request, _ = read_request(path)
    except CelebctlError:
        return path.name
    return f"{request.seed}: {request.prompt}"


def _cell_of(image: Image.Image, side: int) -> tuple[int, int]:
    """The shape of an image, with `side` pixels as its longer side."""
    longer = max(image.size)
    return max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer))
