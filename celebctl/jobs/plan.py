"""From the lines of a job file to jobs: complete requests with the files they are drawn into."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from celebctl_runtime.backends.base import Backend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.prompting.layout import normalize_layout
from celebctl_runtime.prompting.likeness import FULL_LIKENESS, Likeness, likeness_from_json, parse_likeness
from celebctl_runtime.prompting.weights import WEIGHTED
from celebctl_runtime.prompting.wildcards import expand_request
from celebctl_runtime.recipes.reading import MAX_SCALE
from celebctl_runtime.request import MAX_SEED, MAX_SIDE, MAX_STEPS, Request, batch
from celebctl_runtime.sampling.init_image import DEFAULT_STRENGTH, InitImage

from .job_file import MAX_JOBS, FieldError, JobFile, JobLine, LineError, field_of
from .names import check_name, name_key, slug_of

SUFFIX = ".png"
MAX_COUNT = 10_000  # images of one line
_SIZE = re.compile(r"(\d{1,5})(?:[x×](\d{1,5}))?", re.IGNORECASE)


class Drawer(Protocol):
    """What jobs are drawn with; `celebctl.Pipeline` is one."""

    bundle: Bundle
    backend: Backend
    wildcards: Path

    def complete(self, requests: Sequence[Request]) -> list[Request | CelebctlError]:
        """For each request the complete one, or why it cannot be drawn."""
        ...


@dataclass(frozen=True)
class Job:
    """One image to draw.

    Attributes:
        line: Its line in the job file.
        file: The name of the image file.
        request: Complete, once `check_jobs` returned it.
        scale: How many times the image is enlarged.
        init_image: Path of the init image that `request.source` is the digest of.
        digest: Hex SHA-256 of all that determines the image but the model: request, scale, embeddings of the people.
    """

    line: int
    file: str
    request: Request
    scale: int
    init_image: Path | None = None
    digest: str = ""


def check_jobs(drawer: Drawer, jobs: JobFile, seed: int, pattern: str) -> tuple[list[Job], list[LineError]]:
    """The jobs of a file, and its lines that cannot be drawn; nothing is drawn or written.

    Args:
        drawer: Completes and checks the requests.
        jobs: The lines.
        seed: Of the run: lines without a seed get one from it and from their content.
        pattern: Of file names, see `names.check_pattern`.
    """
    found: list[Job] = []
    errors = list(jobs.errors)
    reader = _LineReader(jobs.folder, pattern, drawer.bundle.manifest.size.display_scale, drawer.wildcards)
    for line, line_seed in zip(jobs.lines, _seeds(jobs.lines, seed), strict=True):
        try:
            made = reader.jobs(line, line_seed)
            if len(found) + len(made) > MAX_JOBS:
                raise FieldError("count", f"there are more than {MAX_JOBS} images", "split the file")
            found += made
        except FieldError as error:
            errors.append(LineError(jobs.source, line.line, error.field, error.problem, error.hint))
    good: list[Job] = []
    for job, request in zip(found, drawer.complete([job.request for job in found]), strict=True):
        if isinstance(request, CelebctlError):
            errors.append(LineError(jobs.source, job.line, field_of(request), request.problem, request.hint))
        else:
            people = {name: drawer.bundle.manifest.identities[name].digest for name in request.identities or ()}
            good.append(replace(job, request=request, digest=digest_of(request, job.scale, people)))
    collisions = list(_collisions(jobs.source, good))
    bad = {error.line for error in collisions}
    unique = dict.fromkeys([*errors, *collisions])  # a line with several images has the same error several times
    return [job for job in good if job.line not in bad], sorted(unique, key=lambda error: error.line)


def digest_of(request: Request, scale: int, people: Mapping[str, str]) -> str:
    """Hex SHA-256 of a complete request, the enlargement, and the digests of the people by name."""
    content = {"request": request.to_json(), "scale": scale, "people": dict(people)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _seeds(lines: Sequence[JobLine], seed: int) -> Iterator[int]:
    """The seed of each line: its own, or one derived from the run's, the line's content and how often that came before.

    So lines keep their seeds when others are inserted, and equal lines have different seeds.
    """
    seen: Counter[str] = Counter()
    for line in lines:
        content = json.dumps({name: v for name, v in line.values.items() if name != "name"}, sort_keys=True)
        derived = hashlib.sha256(f"{seed} {seen[content]} {content}".encode()).digest()
        seen[content] += 1
        yield line.values.get("seed", int.from_bytes(derived[:4], "big"))


class _LineReader:
    """Makes jobs of the lines of one file; an init image that several lines name is read once."""

    def __init__(self, folder: Path, pattern: str, scale: int, wildcards: Path) -> None:
        self._folder, self._pattern, self._scale, self._wildcards = folder, pattern, scale, wildcards
        self._digests: dict[Path, str] = {}

    def jobs(self, line: JobLine, seed: int) -> list[Job]:
        """One job per image of the line. Raises FieldError."""
        values = line.values
        count, scale = values.get("count", 1), values.get("scale", self._scale)
        _check_range("count", count, 1, MAX_COUNT)
        _check_range("scale", scale, 1, MAX_SCALE)
        _check_range("seed", seed, 0, MAX_SEED - count + 1)
        init_image = None if "from" not in values else self._folder / values["from"]
        source = "" if init_image is None else _translate("from", lambda: self._digest(init_image))
        jobs: list[Job] = []
        for index, request in enumerate(batch(_request(values, seed, source), count), 1):
            name = _name(values, line.line, self._pattern, index, request)
            drawn = _translate("prompt", partial(self._expanded, request))
            jobs.append(Job(line.line, f"{name}{SUFFIX}", drawn, scale, init_image))
        return jobs

    def _expanded(self, request: Request) -> Request:
        return expand_request(request, self._wildcards)[0]

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = InitImage.read(path).digest
        return self._digests[path]


def _request(values: Mapping[str, Any], seed: int, source: str) -> Request:
    width, height = _size(values)
    if "steps" in values:
        _check_range("steps", values["steps"], 1, MAX_STEPS)
    return Request(
        values["prompt"],
        values.get("negative", ""),
        seed,
        values.get("steps", 0),
        None if "guidance" not in values else float(values["guidance"]),
        values.get("sampler", ""),
        width,
        height,
        source=source,
        strength=float(values.get("strength", DEFAULT_STRENGTH if source else 1.0)),
        likeness=_translate("likeness", lambda: _likeness(values.get("likeness", FULL_LIKENESS))),
        layout=_translate("layout", lambda: normalize_layout(values.get("layout", ""))),
        syntax=WEIGHTED,
    )


def _name(values: Mapping[str, Any], line: int, pattern: str, index: int, request: Request) -> str:
    given = values.get("name")
    if given is None:
        name = pattern.format(line=line, index=index, seed=request.seed, slug=slug_of(request.prompt))
    else:
        stem = given.removesuffix(SUFFIX)
        name = f"{stem}-{request.seed}" if values.get("count", 1) > 1 else stem
    try:
        return check_name(name)
    except ValueError as error:
        raise FieldError("name", f"{error}, but the name is {name[:80]!r}", "choose another name") from error


def _collisions(source: str, jobs: Sequence[Job]) -> Iterator[LineError]:
    first: dict[str, Job] = {}
    for job in jobs:
        other = first.setdefault(name_key(job.file), job)
        if other is not job:
            problem = f"{job.file} is the file of line {other.line} too"
            hint = "give each image a name of its own, or use {line} and {index} in the pattern of names"
            yield LineError(source, job.line, "name", problem, hint)


def _size(values: Mapping[str, Any]) -> tuple[int, int]:
    width, height = values.get("width", 0), values.get("height", 0)
    for name in ("width", "height"):
        if name in values:
            _check_range(name, values[name], 1, MAX_SIDE)
    if "size" not in values:
        return width, height
    if width or height:
        raise FieldError("size", "there are a size and a width or height", "leave one of them out")
    match = _SIZE.fullmatch(str(values["size"]).strip())
    sides = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
    if not all(sides):
        raise FieldError("size", f"the size is {values['size']!r}", "write 512x768, or one side of a square")
    return sides


def _likeness(value: float | str | Mapping[str, Any]) -> Likeness:
    return parse_likeness(value) if isinstance(value, str) else likeness_from_json(value)


def _translate(field: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except CelebctlError as error:
        raise FieldError(field, error.problem, error.hint) from error
    except OverflowError as error:
        raise FieldError(field, f"{field} has a number that is too large") from error


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise FieldError(name, f"{name} {value} is out of range", f"use {least} to {most}")
