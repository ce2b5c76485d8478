"""Grids: the jobs of a prompt whose settings vary along two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celebctl_runtime.errors import UsageError

from .job_file import FieldError, JobFile, jobs_of, value_of_text
from .names import slug_of

PERSON = "person"  # replaces the placeholder in the prompt
TEXT = "text"  # replaces its first value in the prompt
PLACEHOLDER = "{person}"
SETTINGS = ("seed", "steps", "guidance", "likeness", "sampler", "strength")
AXES = (*SETTINGS, PERSON, TEXT)
MAX_CELLS = 100


@dataclass(frozen=True)
class Axis:
    """What varies along one side of a grid.

    Attributes:
        name: One of `AXES`: a setting; "person", whose values replace {person} in the prompt; or "text", whose values
            replace the first of them in the prompt.
        values: Its values, at least one.

    Example:
        >>> axis = parse_axis("text=beach,forest")
        >>> axis.apply({"prompt": "alice on the beach"}, "forest")
        {'prompt': 'alice on the forest'}
    """

    name: str
    values: Sequence[Any]

    def apply(self, settings: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """The entries of a job (`job_file.FIELDS`) with a value of this axis. Raises UsageError."""
        if self.name in SETTINGS:
            return {**settings, self.name: value}
        replaced = PLACEHOLDER if self.name == PERSON else str(self.values[0])
        if replaced not in settings["prompt"]:
            raise UsageError(
                f"the prompt has no {replaced}, which the axis {self.name} replaces",
                f"write {replaced} where the values go",
                reason="axis_not_in_prompt",
                axis=self.name,
            )
        return {**settings, "prompt": settings["prompt"].replace(replaced, str(value))}

    def label(self, value: Any) -> str:
        """The text beside a row or column."""
        if self.name not in SETTINGS or self.name == "sampler":
            return str(value)
        return f"{self.name} {value:g}" if isinstance(value, float) else f"{self.name} {value}"


def parse_axis(text: str) -> Axis:
    """An axis written as NAME=VALUE,VALUE. Raises UsageError.

    Example:
        >>> parse_axis("guidance=3,5.5")
        Axis(name='guidance', values=(3.0, 5.5))
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    parts = [part.strip() for part in values.split(",")]
    if not equals or name not in AXES or not all(parts):
        hint = f"write NAME=VALUE,VALUE with one of {', '.join(AXES)}"
        raise UsageError(f"invalid axis {text[:80]!r}", hint, reason="invalid_axis", axis=text)
    if name in ("likeness", PERSON, TEXT):
        return Axis(name, tuple(parts))
    try:
        return Axis(name, tuple(value_of_text(name, part) for part in parts))
    except FieldError as error:
        raise UsageError(error.problem, error.hint, reason="invalid_axis", axis=text) from error


def grid_jobs(settings: Mapping[str, Any], x: Axis, y: Axis | None = None) -> JobFile:
    """The jobs of a grid, row by row; line k is cell k.

    Args:
        settings: The entries of a job (`job_file.FIELDS`) that all cells have.
        x: Varies along a row.
        y: Varies from row to row; None for one row.

    Raises:
        UsageError: An axis does not fit the prompt, both are the same, or there are more than 100 cells.
    """
    rows: Sequence[Any] = (None,) if y is None else y.values
    if y is not None and y.name == x.name:
        raise UsageError(f"both axes are {x.name}", "choose two", reason="axes_equal", axis=x.name)
    if (count := len(rows) * len(x.values)) > MAX_CELLS:
        raise UsageError(
            f"the grid has {count} cells", f"use up to {MAX_CELLS}", reason="too_many_cells", most=MAX_CELLS
        )
    cells: list[dict[str, Any]] = []
    for row in rows:
        for column in x.values:
            label = x.label(column) if y is None else f"{x.label(column)} {y.label(row)}"
            values = x.apply(settings if y is None else y.apply(settings, row), column)
            cells.append({**values, "name": f"{len(cells) + 1:03}-{slug_of(label)}"})
    jobs = jobs_of(cells, "the grid")
    if jobs.errors:
        error = jobs.errors[0]
        raise UsageError(error.problem, error.hint, reason="invalid_axis")
    return jobs
