"""Job files: many requests in one file, as plain lines, JSONL or CSV.

Plain lines are prompts; empty lines and lines that begin with ``#`` are skipped. A line of JSONL is an object, and a
row of CSV a row below its header, with the entries of `FIELDS`; absent and empty ones take their defaults. Every line
is checked; lines that cannot be used are collected, so that one report names them all.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.files import read_regular
from celebctl_runtime.strict_json import parse_json

Format = Literal["text", "jsonl", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}

MAX_BYTES = 64 << 20  # of a job file
MAX_LINE = 1 << 16  # characters
MAX_JOBS = 100_000  # lines, and images, of one job file

#: What a line may set, and the kinds of its value.
FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "seed": (int,),
    "count": (int,),
    "steps": (int,),
    "guidance": (int, float),
    "sampler": (str,),
    "width": (int,),
    "height": (int,),
    "size": (str, int),
    "likeness": (int, float, str, dict),
    "layout": (str,),
    "from": (str,),
    "strength": (int, float),
    "scale": (int,),
    "name": (str,),
}
#: Names that other programs and the Python API have for them, for the suggestion.
_OTHER_NAMES = {
    "text": "prompt", "neg": "negative", "negative_prompt": "negative", "n": "count", "num_images": "count",
    "cfg": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance", "num_inference_steps": "steps",
    "init_image": "from", "source": "from", "image": "from", "denoising_strength": "strength", "out": "name",
    "file": "name", "filename": "name", "sampler_name": "sampler", "scheduler": "sampler", "upscale": "scale",
}  # fmt: skip
_EXPECTED = {str: "text", int: "an integer", float: "a number", dict: "names and numbers"}


@dataclass(frozen=True)
class LineError:
    """A line of a job file that cannot be drawn.

    Attributes:
        source: The job file.
        line: Its number, from 1; 0 for the file as a whole.
        field: The entry that is wrong; "" for the line as a whole.
        problem: What is wrong, with the value.
        hint: What to do about it.
    """

    source: str
    line: int
    field: str
    problem: str
    hint: str = ""

    def __str__(self) -> str:
        where = ", ".join(filter(None, (self.source, f"line {self.line}" if self.line else "", self.field)))
        return f"{where}: {self.problem}{f' ({self.hint})' if self.hint else ''}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready entries."""
        return {"line": self.line, "field": self.field, "problem": self.problem, "hint": self.hint}


@dataclass(frozen=True)
class JobLine:
    """A line of a job file with its values, of the kinds in `FIELDS`."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class JobFile:
    """The lines of a job file.

    Attributes:
        source: Its name, for messages.
        folder: What relative paths of init images start from.
        lines: The lines that could be read.
        errors: The others.
    """

    source: str
    folder: Path = field(default_factory=Path)
    lines: list[JobLine] = field(default_factory=list[JobLine])
    errors: list[LineError] = field(default_factory=list[LineError])

    def add(self, line: int, values: Callable[[], Mapping[str, Any]]) -> None:
        """Append a line whose values `values` returns, or its error. Raises InvalidInputError for too many lines."""
        if len(self.lines) + len(self.errors) >= MAX_JOBS:
            raise InvalidInputError(
                f"{self.source} has more than {MAX_JOBS} lines", "split it", reason="too_many_jobs", limit=MAX_JOBS
            )
        try:
            self.lines.append(JobLine(line, check_values(values())))
        except FieldError as error:
            self.errors.append(LineError(self.source, line, error.field, error.problem, error.hint))


class FieldError(Exception):
    """An entry of a line has an invalid name or value."""

    def __init__(self, field: str, problem: str, hint: str = "") -> None:
        super().__init__(field, problem, hint)
        self.field, self.problem, self.hint = field, problem, hint


def read_job_file(path: Path, file_format: Format | None = None) -> JobFile:
    """Read a job file.

    Args:
        path: The file; relative paths of init images in it start from its folder.
        file_format: None goes by the suffix (.txt, .jsonl, .ndjson, .csv), else by the first character: ``{`` is JSONL.

    Raises:
        NotFoundError: It cannot be read.
        InvalidInputError: It is larger than 64 MiB, has more than 100,000 lines, or is not UTF-8.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as error:
        hint = "check the path"
        raise NotFoundError(f"cannot read {path}: {error.strerror}", hint, reason="no_job_file", path=path) from error
    return parse_job_file(content, str(path), path.parent, file_format or SUFFIXES.get(path.suffix.lower()))


def parse_job_file(content: bytes, source: str, folder: Path, file_format: Format | None = None) -> JobFile:
    """The lines of a job file's content, see `read_job_file`.

    Example:
        >>> jobs = parse_job_file(b"# people\\nalice smiling\\n", "jobs.txt", Path())
        >>> jobs.lines
        [JobLine(line=2, values={'prompt': 'alice smiling'})]
    """
    if len(content) > MAX_BYTES:
        problem = f"{source} has more than {MAX_BYTES >> 20} MiB"
        raise InvalidInputError(problem, "split it", reason="file_too_large", path=source, limit=MAX_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{source}, line {line} is not UTF-8 text",
            "save the file as UTF-8",
            reason="not_utf8",
            path=source,
            line=line,
        ) from error
    jobs = JobFile(source, folder)
    if file_format is None:
        file_format = "jsonl" if text.lstrip().startswith("{") else "text"
    if file_format == "csv":
        _read_csv(jobs, text)
        return jobs
    for number, line in enumerate(text.split("\n"), 1):
        _read_line(jobs, number, line.strip(), file_format)
    return jobs


def jobs_of(items: Iterable[str | Mapping[str, Any]], source: str = "jobs") -> JobFile:
    """A job file of prompts and mappings of `FIELDS`, numbered from 1; init images may be paths."""
    jobs = JobFile(source)
    for number, item in enumerate(items, 1):
        values = {"prompt": item} if isinstance(item, str) else item
        jobs.add(number, lambda values=values: {k: str(v) if isinstance(v, Path) else v for k, v in values.items()})
    return jobs


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set, each known and of its kind. Raises FieldError."""
    for name in values:
        if name not in FIELDS:
            raise unknown_field(name)
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            raise FieldError(name, f"{name} is {_shown(value)}", f"expected {_expected(name)}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise FieldError(name, f"{name} is out of range", "use a smaller number")
        if isinstance(value, str) and ("\0" in value or not _encodes(value)):
            raise FieldError(name, f"{name} contains a character that UTF-8 or files cannot hold")
    if not str(given.get("prompt", "")).strip():
        raise FieldError("prompt", "there is no prompt", 'give one, such as "alice playing chess"')
    return given


def unknown_field(name: str) -> FieldError:
    """The error for an entry that is not in `FIELDS`."""
    near = difflib.get_close_matches(name.strip().lower(), [*FIELDS, *_OTHER_NAMES], n=1)
    hint = f"did you mean {_OTHER_NAMES.get(near[0], near[0])}?" if near else f"use {', '.join(FIELDS)}"
    return FieldError(name[:60], f"there is no entry {name[:60]!r}", hint)


def value_of_text(name: str, text: str) -> Any:
    """The value of an entry as text: of a cell of CSV, or of an axis. Raises FieldError.

    Example:
        >>> value_of_text("steps", "20"), value_of_text("likeness", "alice=0.5")
        (20, 'alice=0.5')
    """
    if str in FIELDS[name]:
        return text
    try:
        return float(text) if float in FIELDS[name] else int(text)
    except ValueError as error:
        raise FieldError(name, f"{name} is {_shown(text)}", f"expected {_expected(name)}") from error


def check_format(file_format: str | None) -> Format | None:
    """A format by its name. Raises UsageError."""
    if file_format is None or file_format in FORMATS:
        return file_format
    raise UsageError(f"there is no format {file_format!r}", f"use {', '.join(FORMATS)}", reason="unknown_job_format")


def _read_line(jobs: JobFile, number: int, line: str, file_format: Format) -> None:
    if not line or (file_format == "text" and line.startswith("#")):
        return
    if len(line) > MAX_LINE:
        problem = f"the line has {len(line)} characters"
        jobs.errors.append(LineError(jobs.source, number, "", problem, f"use up to {MAX_LINE}"))
    elif file_format == "text":
        jobs.add(number, lambda: {"prompt": line})
    else:
        jobs.add(number, lambda: _parse_object(line))


def _parse_object(line: str) -> Mapping[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise FieldError("", f"it is not JSON: {error}", 'write {"prompt": "alice playing chess"}') from error
    if not isinstance(value, dict):
        raise FieldError("", f"{_shown(value)} is not an object", 'write {"prompt": "alice playing chess"}')
    return value  # pyright: ignore[reportUnknownVariableType]


def _read_csv(jobs: JobFile, text: str) -> None:
    rows = _rows(text)
    try:
        _, header = next(rows, (1, list[str]()))
        names = [name.strip() for name in header]
        repeated = [name for name in names if names.count(name) > 1]
        for name in names:
            if name not in FIELDS:
                raise unknown_field(name)
        if repeated or "prompt" not in names:
            problem = f"the header has {repeated[0]} twice" if repeated else "the header has no prompt"
            raise FieldError(repeated[0] if repeated else "prompt", problem, f"use {', '.join(FIELDS)}")
        for number, cells in rows:
            if cells:
                jobs.add(number, lambda cells=cells: _parse_cells(names, cells))
    except FieldError as error:
        jobs.errors.append(LineError(jobs.source, 1, error.field, error.problem, error.hint))


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of the line on which each begins. Raises FieldError for what is not CSV."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise FieldError(
            "", f"from line {number} on it is not CSV: {error}", "quote cells with commas or quotes"
        ) from error


def _parse_cells(names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) > len(names):
        problem = f"the row has {len(cells)} cells, the header {len(names)}"
        raise FieldError("", problem, "quote a cell that contains a comma")
    present = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}
    for name, cell in present.items():
        if len(cell) > MAX_LINE:
            raise FieldError(name, f"{name} has {len(cell)} characters", f"use up to {MAX_LINE}")
    return {name: value_of_text(name, cell) for name, cell in present.items()}


def _expected(name: str) -> str:
    return " or ".join(
        dict.fromkeys(_EXPECTED[kind] for kind in FIELDS[name] if kind is not int or float not in FIELDS[name])
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def field_of(error: CelebctlError) -> str:
    """The entry of a line that an error of the runtime is about; "" where its reason does not say."""
    known = {
        "invalid_weight": "prompt", "weight_out_of_range": "prompt", "too_many_brackets": "prompt",
        "unknown_person": "prompt", "not_in_bundle": "prompt", "bundle_full": "prompt", "invalid_size": "size",
        "unknown_sampler": "sampler", "invalid_likeness": "likeness", "no_average_embeddings": "likeness",
        "strength_without_image": "strength", "no_steps_left": "strength", "no_image_encoder": "from",
        "engine_without_init_images": "from", "no_image_file": "from", "image_count": "count", "seed_range": "seed",
    }  # fmt: skip
    reason = error.reason
    for known_name in FIELDS:
        if reason == f"{known_name}_out_of_range" or reason == f"not_in_prompt_{known_name}":
            return known_name
    return known.get(reason, "")
