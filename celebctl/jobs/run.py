"""Draw the jobs of a file into a folder, so that a crash or an interruption loses and repeats no image.

An image is finished once its file has its name: files are written atomically, and carry their recipe. The journal
(journal.py) tells finished images without opening them. Images are encoded and written by threads while the next ones
are drawn.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from celebctl_runtime.errors import BusyError, CelebctlError, IntegrityError, InvalidInputError, SetupError, UsageError
from celebctl_runtime.files import TEMPORARY
from celebctl_runtime.picture import WATERMARKED, GeneratedImage, Marks, read_request, save_image, with_ingredients
from celebctl_runtime.pipeline import batches, generate
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress
from celebctl_runtime.request import MAX_SEED, Request
from celebctl_runtime.safety_checker import SafetyChecker
from celebctl_runtime.sampling.init_image import InitImage

from .job_file import JobFile, LineError
from .journal import FILE_NAME, Journal, open_journal
from .names import DEFAULT_PATTERN, check_pattern
from .plan import SUFFIX, Drawer, Job, check_jobs, digest_of

MAX_SETUP_ERRORS = 10  # one after the other: a full disk or a lost GPU, which would fail every other image too
_WRITERS = min(4, os.cpu_count() or 1)
_MAX_UNWRITTEN = 8  # images in memory


class RunOptions(TypedDict, total=False):
    """How jobs are drawn.

    Attributes:
        name: Pattern of file names, with the fields {line}, {index} (of the images of a line), {seed} and {slug} (of
            the prompt). Default "{line:04}-{slug}-{seed}".
        seed: Of the run: gives seeds to lines without one. None takes the one in the folder's journal, else a random
            one.
        overwrite: Replace files that hold other images than the jobs describe.
        keep_going: Draw the valid lines when others are invalid.
        marks: Watermark and content credentials; default: a watermark.
        checker: Images that it refuses fail with PolicyError (reason "unsafe_image"), and are not written.
    """

    name: str
    seed: int | None
    overwrite: bool
    keep_going: bool
    marks: Marks
    checker: SafetyChecker | None


@dataclass(frozen=True)
class JobResult:
    """What became of one image.

    Attributes:
        path: Its file.
        line: Its line in the job file.
        status: "drawn" by this run, "kept" from an earlier one, or "failed".
        request: What was drawn, complete.
        error: Of a failed one.
    """

    path: Path
    line: int
    status: Literal["drawn", "kept", "failed"]
    request: Request
    error: CelebctlError | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready entries."""
        entries = {"path": str(self.path), "line": self.line, "status": self.status, "request": self.request.to_json()}
        return entries if self.error is None else {**entries, "error": error_json(self.error)}


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        folder: Where the images are.
        seed: Of the run.
        images: The images of the job file in its order, without those that were not reached.
        invalid: Lines that could not be drawn at all, with `keep_going`.
        unfinished: How many images were not reached, because ten in a row failed for reasons of the machine.
        seconds: How long drawing took.
    """

    folder: Path
    seed: int
    images: list[JobResult]
    invalid: list[LineError]
    unfinished: int
    seconds: float

    @property
    def drawn(self) -> list[JobResult]:
        """The images that this run drew."""
        return [image for image in self.images if image.status == "drawn"]

    @property
    def kept(self) -> list[JobResult]:
        """The images that earlier runs drew."""
        return [image for image in self.images if image.status == "kept"]

    @property
    def failed(self) -> list[JobResult]:
        """The images that could not be drawn or written."""
        return [image for image in self.images if image.status == "failed"]

    @property
    def is_complete(self) -> bool:
        """Whether every image of every line is there."""
        return not (self.failed or self.invalid or self.unfinished)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready entries."""
        return {
            "folder": str(self.folder),
            "journal": str(self.folder / FILE_NAME),
            "seed": self.seed,
            "drawn": len(self.drawn),
            "kept": len(self.kept),
            "failed": len(self.failed),
            "unfinished": self.unfinished,
            "seconds": round(self.seconds, 3),
            "images": [image.to_json() for image in self.images],
            "invalid_lines": [error.to_json() for error in self.invalid],
        }


def run_jobs(
    drawer: Drawer,
    jobs: JobFile,
    folder: Path,
    *,
    progress: ProgressCallback = ignore_progress,
    finished: Callable[[JobResult], object] = lambda _: None,
    **options: Unpack[RunOptions],
) -> RunReport:
    """Draw the jobs of a file. Called again with the same arguments, it draws what is missing.

    Args:
        drawer: The pipeline to draw with.
        jobs: See `job_file.read_job_file`.
        folder: Where the images and the journal go; created when missing.
        progress: Called with stage "drawing", the images done and their total, and the metrics "images_per_minute" and
            "seconds_left".
        finished: Called once for each image: for kept ones at once, then for the others in the order of the file.
        options: See `RunOptions`.

    Returns:
        What became of every image. Failures of single images do not raise.

    Raises:
        UsageError: A line is invalid (reason "invalid_lines"; `errors` in its values has all of them), or a file is
            there that holds another image ("images_exist"); nothing was drawn.
        InvalidInputError: The file has no lines (reason "no_jobs").
        BusyError: Another process draws into the folder.
        SetupError: The folder cannot be written.
    """
    pattern, keep_going = check_pattern(options.get("name", DEFAULT_PATTERN)), options.get("keep_going", False)
    seed = run_seed(folder, options.get("seed"))
    if not jobs.lines and not jobs.errors:
        raise InvalidInputError(f"{jobs.source} has no prompts", "write one a line", reason="no_jobs")
    good, errors = check_jobs(drawer, jobs, seed, pattern)
    if errors and not (keep_going and good):
        raise _invalid("invalid_lines", jobs, errors)
    with open_journal(folder) as journal:
        if options.get("seed") is None and journal.seed not in (None, seed):
            raise BusyError(f"another process drew into {folder} meanwhile", "try again", reason="folder_busy")
        _remove_temporary_files(folder, good)
        states = {job.file: _state(folder, journal, job) for job in good}
        taken = [] if options.get("overwrite") else _taken_names(jobs, folder, states, good)
        if taken and not (keep_going and len(taken) < len(good)):
            raise _invalid("images_exist", jobs, taken)
        if taken:
            errors += taken
            good = [job for job in good if states[job.file] != "foreign"]
        if journal.seed != seed:
            journal.begin(seed)
        run = _Run(drawer, journal, folder, progress, finished, _saver(options))
        for job in good:
            if states[job.file] == "kept":
                run.settle(job, "kept")
        run.draw([job for job in good if states[job.file] != "kept"])
    images = [run.results[job.file] for job in good if job.file in run.results]
    return RunReport(folder, seed, images, errors, len(good) - len(images), run.seconds)


def _saver(options: RunOptions) -> Callable[..., Path]:
    """Writes an image to a path at a scale. Raises PolicyError for one that the checker refuses."""
    checker, marks = options.get("checker"), options.get("marks", WATERMARKED)

    def save(image: GeneratedImage, path: Path, *, scale: int) -> Path:
        if checker is not None:
            checker.check(image.image)
        return save_image(image, path, overwrite=options.get("overwrite", False), marks=marks, scale=scale)

    return save


def _taken_names(jobs: JobFile, folder: Path, states: Mapping[str, str], good: Sequence[Job]) -> list[LineError]:
    """The lines whose files are there and hold other images."""
    problem = "{} holds another image"
    foreign = [job for job in good if states[job.file] == "foreign"]
    return [LineError(jobs.source, job.line, "name", problem.format(folder / job.file)) for job in foreign]


class _Run:
    """Draws jobs in batches; a pool of threads writes the images."""

    def __init__(
        self,
        drawer: Drawer,
        journal: Journal,
        folder: Path,
        progress: ProgressCallback,
        finished: Callable[[JobResult], object],
        save: Callable[..., Path],
    ) -> None:
        self.results: dict[str, JobResult] = {}
        self.seconds = 0.0
        self._drawer, self._journal, self._folder = drawer, journal, folder
        self._progress, self._finished = progress, finished
        self._unwritten: deque[tuple[Job, Future[CelebctlError | None]]] = deque()
        self._save_image, self._setup_errors = save, 0
        self._read = lru_cache(maxsize=4)(InitImage.read)

    def draw(self, jobs: Sequence[Job]) -> None:
        """Draw and write the images; results are added in the order of the jobs."""
        pace = _Pace(jobs, len(self.results), self._progress)
        groups = batches([job.request for job in jobs], self._drawer.backend.batch_limit) if jobs else ()
        with ThreadPoolExecutor(_WRITERS, "celebctl-writer") as pool:
            try:
                for indices in groups:
                    for job, image in self._images([jobs[index] for index in indices], pace):
                        pace.add_drawn(job)
                        self._unwritten.append((job, pool.submit(self._save, job, image)))
                        self._settle_written(pace, at_most=_MAX_UNWRITTEN)
                    if self._setup_errors >= MAX_SETUP_ERRORS:
                        break
            finally:
                self._settle_written(pace, at_most=0)
        self.seconds = pace.seconds

    def settle(self, job: Job, status: Literal["drawn", "kept", "failed"], error: CelebctlError | None = None) -> None:
        """Add the result of a job."""
        result = JobResult(self._folder / job.file, job.line, status, job.request, error)
        self.results[job.file] = result
        self._finished(result)

    def _images(self, jobs: Sequence[Job], pace: _Pace) -> Iterator[tuple[Job, GeneratedImage | CelebctlError]]:
        """The images of jobs that run together, or why there is none; a batch that fails is drawn one by one."""
        try:
            init_images = [self._init_image(job) for job in jobs if job.init_image]
            requests = [job.request for job in jobs]
            images = generate(self._drawer.bundle, self._drawer.backend, requests, pace.during(jobs), init_images)
        except CelebctlError as error:
            if len(jobs) == 1:
                yield jobs[0], error
                return
            for job in jobs:
                yield from self._images([job], pace)
            return
        yield from zip(jobs, with_ingredients(images, init_images), strict=True)

    def _init_image(self, job: Job) -> InitImage:
        assert job.init_image is not None
        image = self._read(job.init_image)
        if image.digest != job.request.source:
            problem = f"{job.init_image} has changed since the run began"
            raise IntegrityError(problem, "run it again", reason="init_image_changed", path=job.init_image)
        return image

    def _save(self, job: Job, image: GeneratedImage | CelebctlError) -> CelebctlError | None:
        """Write an image and its line in the journal; returns why that failed. Runs in a thread."""
        if isinstance(image, CelebctlError):
            error = image
        else:
            path = self._folder / job.file
            try:
                self._save_image(image, path, scale=job.scale)
                self._journal.add(job.file, job.line, job.digest, path.stat().st_size)
                return None
            except CelebctlError as failure:
                error = failure
        with contextlib.suppress(SetupError):  # on a full disk the failure is reported all the same
            self._journal.add_failure(job.file, job.line, job.digest, error_json(error))
        return error

    def _settle_written(self, pace: _Pace, at_most: int) -> None:
        """Add the results of written images, and wait until at most so many are not written."""
        while self._unwritten and (len(self._unwritten) > at_most or self._unwritten[0][1].done()):
            job, future = self._unwritten.popleft()
            error = future.result()
            self._setup_errors = self._setup_errors + 1 if isinstance(error, SetupError) else 0
            self.settle(job, "drawn" if error is None else "failed", error)
            pace.add_finished()


class _Pace:
    """Reports progress. Work is counted in steps times pixels, so that jobs of different lengths are weighed."""

    def __init__(self, jobs: Iterable[Job], done: int, progress: ProgressCallback) -> None:
        self._work = {job.file: _work(job.request) for job in jobs}
        self._all_work, self._drawn_work = sum(self._work.values()), 0.0
        self._done, self._total = done, done + len(self._work)
        self._progress, self._started = progress, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since drawing began."""
        return time.monotonic() - self._started

    def during(self, jobs: Sequence[Job]) -> ProgressCallback:
        """The callback for the steps of a batch."""
        work = sum(self._work[job.file] for job in jobs)
        return lambda event: self._report(work * event.step / max(event.total, 1))

    def add_drawn(self, job: Job) -> None:
        """Count the work of an image, which has yet to be written."""
        self._drawn_work += self._work[job.file]

    def add_finished(self) -> None:
        """Count an image as finished."""
        self._done += 1
        self._report(0.0)

    def _report(self, drawing: float) -> None:
        """`drawing`: the work that is done on the images being drawn."""
        elapsed, work = self.seconds, self._drawn_work + drawing
        metrics = {}
        if work and elapsed:
            metrics = {
                "images_per_minute": 60 * len(self._work) * work / self._all_work / elapsed,
                "seconds_left": (self._all_work - work) * elapsed / work,
            }
        self._progress(Progress("drawing", self._done, self._total, metrics))


def _work(request: Request) -> float:
    return float((request.steps - request.skipped) * request.width * request.height)


def _state(folder: Path, journal: Journal, job: Job) -> Literal["missing", "kept", "foreign"]:
    """Whether the file of a job holds its image; an image that a crash kept out of the journal is added to it."""
    path = folder / job.file
    if not os.path.lexists(path):
        return "missing"
    size = path.stat().st_size if path.is_file() else -1
    if journal.finished.get(job.file) == (job.digest, size):
        return "kept"
    try:
        request, record = read_request(path)
        people: Mapping[str, str] = record.get("identities", {})
        drawn = digest_of(request, int(record.get("scale", 1)), people)
    except (CelebctlError, TypeError, ValueError):
        return "foreign"
    if drawn != job.digest:
        return "foreign"
    journal.add(job.file, job.line, job.digest, size)
    return "kept"


def run_seed(folder: Path, seed: int | None) -> int:
    """The seed of the run: given, or that of the journal, or random. Raises UsageError."""
    if seed is not None:
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"seed {seed} is out of range", f"use 0 to {MAX_SEED}", reason="seed_range", last=MAX_SEED)
        return seed
    known = Journal(folder / FILE_NAME).seed
    return secrets.randbelow(2**32) if known is None else known


def _remove_temporary_files(folder: Path, jobs: Iterable[Job]) -> None:
    """Remove what a killed process left of these images (`celebctl_runtime.files.atomic_write`)."""
    stems = {job.file.removesuffix(SUFFIX)[:64] for job in jobs}
    for path in folder.glob(f".*{SUFFIX}"):
        match = TEMPORARY.fullmatch(path.name)
        if match and match["stem"] in stems:
            path.unlink(missing_ok=True)


def _invalid(reason: str, jobs: JobFile, errors: Sequence[LineError]) -> UsageError:
    what = "cannot be drawn" if reason == "invalid_lines" else "cannot be written"
    first = str(replace(errors[0], source=""))
    if len(errors) == 1:
        problem = f"{jobs.source}, {first}"
    else:
        problem = f"{len(errors)} lines of {jobs.source} {what}; the first: {first}"
    hint = "correct them, or pass keep_going=True" if reason == "invalid_lines" else "pass overwrite=True"
    return UsageError(problem, hint, reason=reason, errors=list(errors))


def error_json(error: CelebctlError) -> dict[str, str]:
    """JSON-ready entries of an error."""
    return {"code": error.code, "reason": error.reason, "problem": error.problem, "hint": error.hint}
