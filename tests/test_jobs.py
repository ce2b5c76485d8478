"""Many images: job files, names, the journal, `Pipeline.run` and grids, on the toy bundle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bundle_fakes import make_identity, write_bundle
from PIL import Image

from celebctl.grid import check_cells, grid
from celebctl.jobs import run as run_module
from celebctl.jobs.axes import Axis, grid_jobs, parse_axis
from celebctl.jobs.job_file import FIELDS, JobFile, jobs_of, parse_job_file, read_job_file
from celebctl.jobs.journal import FILE_NAME, open_journal
from celebctl.jobs.names import check_name, check_pattern, slug_of
from celebctl.jobs.plan import check_jobs
from celebctl.jobs.run import RunReport, run_jobs
from celebctl.jobs.watch import WatchedFile, watch
from celebctl.library import Library
from celebctl.pipeline import Pipeline
from celebctl.prompt_grid import CHUNK, contact_sheet
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.credentials import Ingredient, Signer
from celebctl_runtime.errors import BusyError, CelebctlError, InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.picture import Marks, read_request
from celebctl_runtime.progress import Progress

JOBS = [{"prompt": "alice", "seed": 5, "count": 2, "steps": 2}, {"prompt": "alice on the beach", "steps": 3}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = write_bundle(tmp_path_factory.mktemp("jobs") / "bundle", encodes=True)
    bundle.add(make_identity("alice", 1))
    return bundle


@pytest.fixture
def pipe(bundle: Bundle, tmp_path: Path) -> Pipeline:
    return Pipeline(bundle, device="cpu", threads=1, library=Library(tmp_path / "home"))


def read(text: str, suffix: str = ".jsonl") -> JobFile:
    path = Path(f"jobs{suffix}")
    path.write_text(text, encoding="utf-8")
    return read_job_file(path)


def problems(jobs: JobFile) -> list[tuple[int, str]]:
    return [(error.line, error.field) for error in jobs.errors]


def images(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("[!.]*.png")):
        with Image.open(path) as image:
            found[path.name] = image.tobytes()
    return found


def statuses(report: RunReport) -> list[str]:
    return [image.status for image in report.images]


# Job files


def test_the_three_formats_say_the_same() -> None:
    plain = read("\ufeff# people\n\nalice smiling\r\n  bob \n", ".txt")
    assert [(line.line, line.values) for line in plain.lines] == [
        (3, {"prompt": "alice smiling"}),
        (4, {"prompt": "bob"}),
    ]
    jsonl = read('{"prompt": "alice, at 5", "seed": 3, "guidance": 2, "likeness": "alice=0.5", "steps": null}\n')
    csv = read('prompt, seed,guidance,likeness,steps\n"alice, at 5",3,2,alice=0.5,\n\n', ".csv")
    assert csv.lines[0].values == jsonl.lines[0].values and not csv.errors
    assert csv.lines[0].line == 2 and (jsonl.source, jsonl.folder) == ("jobs.jsonl", Path())
    assert parse_job_file(b' {"prompt": "a"}', "stdin", Path()).lines[0].values == {"prompt": "a"}
    assert parse_job_file(b"[a] portrait", "stdin", Path()).lines[0].values == {"prompt": "[a] portrait"}


def test_every_bad_line_is_named_with_its_field() -> None:
    lines = [
        '{"prompt": "a"}', '{"prompt": "a", "stepz": 3}', '{"prompt": "a", "seed": "3"}', "{", "[1]", '{"seed": 1}',
        '{"prompt": "a", "steps": true}', '{"prompt": "a", "prompt": "b"}', '{"prompt": "a", "cfg": 3}',
        '{"prompt": "\\ud800"}', "x" * 70000,
    ]  # fmt: skip
    jobs = read("\n".join(lines))
    assert [line.line for line in jobs.lines] == [1]
    assert problems(jobs) == [
        (2, "stepz"), (3, "seed"), (4, ""), (5, ""), (6, "prompt"), (7, "steps"), (8, ""),
        (9, "cfg"), (10, ""), (11, ""),
    ]  # fmt: skip
    assert "did you mean steps?" in str(jobs.errors[0]) and "did you mean guidance?" in str(jobs.errors[7])
    csv = read('prompt,seed\na,x\nb,1,2\n"two\nlines",4\nc,5.5\n', ".csv")
    assert problems(csv) == [(2, "seed"), (3, ""), (6, "seed")] and [line.line for line in csv.lines] == [4]
    for header in ("prompt,prompt", "seed", "prompt,sed", ""):
        assert [line for line, _ in problems(read(f"{header}\na,1\n", ".csv"))] == [1]
    assert problems(read('prompt\n"a\n', ".csv")) == [(1, "")]


def test_files_that_cannot_be_read_are_refused() -> None:
    Path("latin.txt").write_bytes(b"alice\ncaf\xe9\n")
    with pytest.raises(InvalidInputError) as caught:
        read_job_file(Path("latin.txt"))
    assert (caught.value.reason, caught.value.values["line"]) == ("not_utf8", 2)
    for path in ("nowhere.txt", ".", "/dev/null"):
        with pytest.raises(NotFoundError):
            read_job_file(Path(path))
    with pytest.raises(InvalidInputError) as caught:
        parse_job_file(b"a\n" * 100_001, "many", Path())
    assert caught.value.reason == "too_many_jobs"


def test_values_are_checked_before_anything_is_drawn(pipe: Pipeline) -> None:
    Path("no.png").write_text("no image")
    wrong: list[Mapping[str, Any]] = [
        {"prompt": "<carl>"}, {"steps": 5000}, {"steps": 0}, {"guidance": -1}, {"sampler": "ddmi"}, {"size": "64x63"},
        {"size": "5"}, {"size": "big"}, {"size": 64, "width": 64}, {"width": 12}, {"seed": -1}, {"count": 0},
        {"likeness": 2}, {"likeness": {"bob": 1.0}}, {"likeness": "x"}, {"layout": "left:bob"}, {"layout": "up:alice"},
        {"strength": 0.5}, {"from": "nowhere.png"}, {"from": "no.png"}, {"scale": 17}, {"name": "a/b"}, {"name": "con"},
        {"seed": 2**63 - 1, "count": 2}, {"guidance": float("nan")},
        {"guidance": 10**399}, {"likeness": {"alice": 10**399}}, {"from": "~nobody-here/a.png"}, {"from": "."},
    ]  # fmt: skip
    fields = [next(iter(one)) for one in wrong]
    fields[9], fields[23] = "size", "seed"
    jobs = jobs_of([{"prompt": "alice", **one} for one in wrong])
    with pytest.raises(UsageError) as caught:
        run_jobs(pipe, jobs, Path("out"))
    errors: Any = caught.value.values["errors"]
    assert caught.value.reason == "invalid_lines" and not Path("out").exists()
    named = {error.line: error.field for error in errors}
    assert [named.get(line) for line in range(1, len(wrong) + 1)] == fields
    with pytest.raises(InvalidInputError) as empty:
        run_jobs(pipe, jobs_of([]), Path("out"))
    assert empty.value.reason == "no_jobs"


def test_lines_keep_their_seeds_when_others_are_inserted(pipe: Pipeline) -> None:
    def seeds(*prompts: str, seed: int = 1) -> list[int]:
        return [job.request.seed for job in check_jobs(pipe, jobs_of(prompts), seed, "{line}")[0]]

    first = seeds("alice", "beach", "alice")
    assert len(set(first)) == 3 and seeds("chess", "alice", "beach", "alice")[1:] == first
    assert not set(first) & set(seeds("alice", "beach", "alice", seed=2))


def test_prompts_mean_what_they_mean_in_gen(pipe: Pipeline) -> None:
    pipe.wildcards.mkdir(parents=True)
    (pipe.wildcards / "place.txt").write_text("beach\nsnow\n")
    lines: list[Any] = [{"prompt": "(alice:1.2) {red|blue} __place__", "seed": 7, "count": 3, "negative": "{a|b}"}]
    jobs, errors = check_jobs(pipe, jobs_of(lines), 1, "{slug}-{seed}")
    options: Any = {"negative_prompt": "{a|b}", "steps": 1, "num_images": 3}
    drawn = pipe(lines[0]["prompt"], seed=7, **options).requests
    assert not errors and [replace(job.request, steps=1) for job in jobs] == drawn
    assert {job.request.syntax for job in jobs} == {"weighted"} and len({job.request.prompt for job in jobs}) > 1
    wrong = ["alice (a:1.2.3)", "alice __nowhere__", "alice (a:1000)"]
    _, errors = check_jobs(pipe, jobs_of(wrong), 1, "{line}")
    assert [(error.line, error.field) for error in errors] == [(1, "prompt"), (2, "prompt"), (3, "prompt")]


# Names


def test_names_are_safe_everywhere() -> None:
    assert check_name("alice 1") == "alice 1"
    for name in ("", ".x", "a/b", "a\\b", "a:b", "nul", "COM1.x", "a.", "a ", "a\x00", "x" * 151, "é" * 120):
        with pytest.raises(ValueError):
            check_name(name)
    for pattern in ("{foo}", "{slug.x}", "{line:04}/{slug}", "{line", "{slug!r}", "{line:99999}", "{}", "{slug:>9}"):
        with pytest.raises(UsageError) as caught:
            check_pattern(pattern)
        assert caught.value.reason == "invalid_name_pattern"
    assert check_pattern("{line:04}-{index:2}-{seed}") and slug_of("Zoë, playing 2 chess!") == "zoë-playing-2-chess"
    assert len(slug_of("漢字" * 50).encode()) <= 100 and slug_of("!") == "image"


def test_names_that_collide_are_found(pipe: Pipeline) -> None:
    lines = [{"prompt": "alice", "name": "A"}, {"prompt": "beach", "name": "a.png"}, {"prompt": "chess", "count": 2}]
    _, errors = check_jobs(pipe, jobs_of(lines), 1, "{slug}")
    assert [(error.line, error.field) for error in errors] == [(2, "name"), (3, "name")]


# Runs


def test_a_run_draws_what_the_lines_say_and_the_next_run_nothing(pipe: Pipeline) -> None:
    events: list[Progress] = []
    report = pipe.run(JOBS, "out", seed=1, progress=events.append)
    assert report.is_complete and statuses(report) == ["drawn"] * 3 and report.seed == 1
    assert [image.path.name for image in report.images][:2] == ["0001-alice-5.png", "0001-alice-6.png"]
    requests = [read_request(image.path)[0] for image in report.images]
    assert [(one.seed, one.steps) for one in requests[:2]] == [(5, 2), (6, 2)] and requests[2].steps == 3
    assert requests == [image.request for image in report.images]
    assert images(Path("out"))["0001-alice-6.png"] == _drawn_alone(pipe, "alice", 6)
    assert (events[-1].step, events[-1].total) == (3, 3) and events[-1].metrics["seconds_left"] == 0
    assert [event.step for event in events] == sorted(event.step for event in events)
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    again = pipe.run(JOBS, "out")  # with the seed of the journal
    assert statuses(again) == ["kept"] * 3 and again.seed == 1
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}


def _drawn_alone(pipe: Pipeline, prompt: str, seed: int) -> bytes:
    (file,) = pipe(prompt, seed=seed, steps=2).save("alone.png", scale=pipe.bundle.manifest.size.display_scale)
    with Image.open(file) as image:
        return image.tobytes()


def test_what_is_missing_or_has_changed_is_drawn(pipe: Pipeline) -> None:
    complete = images(pipe.run(JOBS, "whole", seed=1).folder)
    pipe.run(JOBS, "out", seed=1)
    names, journal = list(complete), Path("out", FILE_NAME)
    (Path("out") / names[0]).unlink()
    journal.write_bytes(journal.read_bytes()[:-30])  # as torn by a crash, after the image was written
    Path("out", ".0001-alice-6.celebctl-123-0a1b2c3d.png").write_text("half")  # as left by one
    Path("out", ".mine.celebctl-123-0a1b2c3d.png").write_text("mine")
    assert sorted(statuses(pipe.run(JOBS, "out"))) == ["drawn", "kept", "kept"]
    assert images(Path("out")) == complete and statuses(pipe.run(JOBS, "out")) == ["kept"] * 3
    assert [path.name for path in Path("out").glob(".*.png")] == [".mine.celebctl-123-0a1b2c3d.png"]
    journal.unlink()  # the recipes in the images suffice
    assert statuses(pipe.run(JOBS, "out", seed=1)) == ["kept"] * 3
    assert statuses(pipe.run([*JOBS, {"prompt": "chess", "seed": 1, "steps": 2}], "out"))[-2:] == ["kept", "drawn"]


def test_images_of_other_requests_are_kept_unless_overwritten(pipe: Pipeline) -> None:
    one: list[Mapping[str, Any]] = [{"prompt": "alice", "seed": 1, "steps": 2, "name": "a"}]
    other = [{**one[0], "steps": 3}, {"prompt": "beach", "seed": 1, "steps": 2, "name": "b"}]
    before = pipe.run(one, "out").images[0].path.read_bytes()
    with pytest.raises(UsageError) as caught:
        pipe.run(other, "out")
    assert caught.value.reason == "images_exist" and not Path("out/b.png").exists()
    report = pipe.run(other, "out", keep_going=True)
    assert statuses(report) == ["drawn"] and [error.line for error in report.invalid] == [1] and not report.is_complete
    assert Path("out/a.png").read_bytes() == before
    assert statuses(pipe.run(other, "out", overwrite=True)) == ["drawn", "kept"]
    assert read_request(Path("out/a.png"))[0].steps == 3


def test_a_relearned_person_is_another_image(bundle: Bundle, tmp_path: Path) -> None:
    library = Library(tmp_path / "home")
    library.save(make_identity("zoe", 1))
    pipe = Pipeline(bundle, threads=1, library=library, add_people=True)
    job = [{"prompt": "zoe", "seed": 1, "steps": 2}]
    assert statuses(pipe.run(job, "out")) == ["drawn"] and statuses(pipe.run(job, "out")) == ["kept"]
    library.save(make_identity("zoe", 2), overwrite=True)
    with pytest.raises(UsageError) as caught:
        pipe.run(job, "out")
    assert caught.value.reason == "images_exist"
    lines = jobs_of(["zoe", "<carl>", "<carl>"])
    assert [error.line for error in check_jobs(pipe, lines, 1, "{line}")[1]] == [2, 3]


def test_failures_of_single_images_do_not_end_a_run(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (32, 32), "red").save("init.png")
    lines: list[str | Mapping[str, Any]] = ["alice", {"prompt": "alice", "from": "init.png"}, "beach", "chess"]
    save = run_module.save_image

    def fill(image: Any, path: Path, **options: Any) -> Path:
        if "beach" in path.name:
            raise SetupError("no space", reason="disk_full")
        return save(image, path, **options)

    def vanish(progress: Progress) -> None:
        Path("init.png").unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_image", fill)
        report = pipe.run(lines, "out", progress=vanish)
    assert statuses(report) == ["drawn", "failed", "failed", "drawn"]
    assert [image.error and image.error.reason for image in report.failed] == ["no_image_file", "disk_full"]
    journal = [json.loads(line) for line in Path("out", FILE_NAME).read_text().splitlines()]
    assert {entry["line"] for entry in journal if "error" in entry} == {2, 3}
    Image.new("RGB", (32, 32), "red").save("init.png")
    assert statuses(pipe.run(lines, "out")) == ["kept", "drawn", "drawn", "kept"]
    assert read_request(next(Path("out").glob("0002*")))[0].strength == 0.6


def test_errors_of_the_machine_end_a_run(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any, **__: Any) -> Path:
        raise SetupError("no space", reason="disk_full")

    monkeypatch.setattr(run_module, "save_image", fill)
    report = pipe.run([{"prompt": "alice", "steps": 1, "count": 60}], "out")
    assert len(report.failed) + report.unfinished == 60 and report.unfinished > 20


def test_an_interruption_keeps_what_is_drawn(pipe: Pipeline) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 1 and progress.metrics["images_per_minute"]:
            raise KeyboardInterrupt

    jobs = [{"prompt": "alice", "count": 30}]
    with pytest.raises(KeyboardInterrupt):
        pipe.run(jobs, "out", seed=1, progress=interrupt)
    report = pipe.run(jobs, "out")
    assert report.is_complete and report.kept and report.drawn and report.seed == 1


def test_one_process_draws_into_a_folder(pipe: Pipeline) -> None:
    with open_journal(Path("out")), pytest.raises(BusyError) as caught:
        pipe.run(JOBS, "out")
    assert caught.value.reason == "folder_busy"


@pytest.mark.parametrize("content", ['{"format": 2, "seed": 1}', '{"format": 1}', '{"file": "a.png"}', '{"x": 1}'])
def test_a_foreign_journal_is_refused(pipe: Pipeline, content: str) -> None:
    Path("out").mkdir()
    Path("out", FILE_NAME).write_text(f"{content}\n")
    with pytest.raises(CelebctlError) as caught:
        pipe.run(JOBS, "out")
    assert caught.value.code == "integrity" and not list(Path("out").glob("*.png"))


def test_images_that_run_together_equal_those_drawn_alone(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = images(pipe.run(JOBS, "alone", seed=1).folder)
    monkeypatch.setattr(type(pipe.backend), "batch_limit", 4)
    assert images(pipe.run(JOBS, "together", seed=1).folder) == alone


KILLED = """
import sys
from pathlib import Path
from celebctl.library import Library
from celebctl.pipeline import Pipeline
from celebctl_runtime.bundle.bundle import Bundle
pipe = Pipeline(Bundle.open(Path(sys.argv[1])), threads=1, library=Library(Path("home")))
print("ready", flush=True)
sys.stdin.readline()
report = pipe.run([{"prompt": "alice", "count": 40, "seed": 1}], "out", seed=1)
assert report.is_complete
"""


def test_a_killed_run_loses_and_repeats_nothing(pipe: Pipeline, bundle: Bundle) -> None:
    """SIGKILL at random moments of real processes."""
    whole = images(pipe.run([{"prompt": "alice", "count": 40, "seed": 1}], "whole", seed=1).folder)
    pauses, killed = random.Random(7), 0
    for _ in range(40):
        command = [sys.executable, "-c", KILLED, str(bundle.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"
            process.stdin.write("\n")
            process.stdin.flush()
            there = len(list(Path("out").glob("*.png")))
            wanted = there + pauses.randrange(5, 15)
            while process.poll() is None and len(list(Path("out").glob("*.png"))) < min(wanted, 40):
                time.sleep(0.001)
            if process.poll() is None and killed < 4:
                process.send_signal(signal.SIGKILL)
            killed += process.wait() != 0
        if process.returncode == 0:
            break
    assert killed and images(Path("out")) == whole
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in Path("whole").iterdir()}


def test_the_benchmark_draws_every_image_both_ways(bundle: Bundle) -> None:
    measure: Any = import_module("benchmarks.run_throughput").measure
    result = measure(str(bundle.path), 4, 2, 1)
    assert (result["bundle"], result["images"]) == ("toy", 4) and 0 < result["throughput_ratio"] < 10


# Watched folders


def test_dropped_job_files_are_drawn_and_moved(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celebctl.jobs.watch.INTERVAL", 0.01)
    Path("in").mkdir()
    Path("in/a.txt").write_text("alice\n")
    Path("in/b.jsonl").write_text('{"prompt": "alice", "steps": 5000}\n')
    Path("in/notes.md").write_text("mine")
    results: list[WatchedFile] = []

    def draw(jobs: JobFile, folder: Path) -> RunReport:
        return run_jobs(pipe, jobs, folder, seed=1)

    watch(draw, Path("in"), until_empty=True, finished=results.append)
    assert sorted(str(result.path) for result in results) == ["in/done/a.txt", "in/failed/b.jsonl"]
    assert len(images(Path("in/images/a"))) == 1 and Path("in/notes.md").exists()
    report = json.loads(Path("in/failed/b.jsonl.report.json").read_text())
    assert report["error"]["reason"] == "invalid_lines"
    assert json.loads(Path("in/done/a.txt.report.json").read_text())["drawn"] == 1
    Path("in/a.txt").write_text("alice\nbeach\n")
    watch(draw, Path("in"), until_empty=True, finished=results.append)
    assert results[-1].path == Path("in/done/a-2.txt") and results[-1].report
    assert statuses(results[-1].report) == ["kept", "drawn"]
    with pytest.raises(NotFoundError):
        watch(draw, Path("nowhere"))


def test_a_file_that_still_grows_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    file, seen, pauses = Path("in/a.txt"), list[int](), list[float]()
    file.write_text("alice\n")

    def grow(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) <= 5:
            file.write_text("alice\n" * (len(pauses) + 1))

    def draw(jobs: JobFile, folder: Path) -> RunReport:
        seen.append(len(jobs.lines))
        return RunReport(folder, 1, [], [], 0, 0.0)

    monkeypatch.setattr("celebctl.jobs.watch.time", SimpleNamespace(sleep=grow))
    watch(draw, Path("in"), until_empty=True)
    assert seen == [6] and set(pauses) == {1.0}


@pytest.mark.parametrize("late", [False, True])
def test_a_job_file_that_is_deleted_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    monkeypatch.setattr("celebctl.jobs.watch.INTERVAL", 0.0)
    Path("in").mkdir()
    for name, second in (("a.txt", 100), ("b.txt", 200)):
        Path("in", name).write_text("alice\n")
        os.utime(Path("in", name), (second, second))
    results = list[WatchedFile]()

    def draw(jobs: JobFile, folder: Path) -> RunReport:
        Path("in/a.txt" if late else "in/b.txt").unlink(missing_ok=True)
        return RunReport(folder, 1, [], [], 0, 0.0)

    watch(draw, Path("in"), until_empty=True, finished=results.append)
    assert [result.path.name for result in results] == ["b.txt" if late else "a.txt"]


# Grids


def test_a_grid_has_a_cell_for_each_pair_of_values(pipe: Pipeline) -> None:
    drawn = pipe.grid("{person} on the beach", "seed=1,2,3", "person=alice,bob", steps=2, folder="cells")
    asked = [(request.seed, request.prompt.split()[0], request.steps) for request in drawn.requests]
    assert asked == [(seed, name, 2) for name in ("alice", "bob") for seed in (1, 2, 3)]
    assert [len(row) for row in drawn.images] == [3, 3] and len(images(Path("cells"))) == 6
    path = drawn.save(Path("grid.png"), cell=100)
    with Image.open(path) as sheet:
        recipe = json.loads(sheet.text[CHUNK])  # type: ignore[attr-defined]
        assert sheet.width > 3 * 108 and sheet.height > 2 * 108
    assert recipe["axes"] == {
        "x": {"name": "seed", "values": [1, 2, 3]},
        "y": {"name": "person", "values": ["alice", "bob"]},
    }
    assert [request["seed"] for request in recipe["requests"]] == [1, 2, 3, 1, 2, 3] and recipe["record"]["bundle"]
    before = {path: path.stat().st_mtime_ns for path in Path("cells").glob("*.png")}
    pipe.grid("{person} on the beach", "seed=1,2,3", "person=alice,bob", steps=2, folder="cells")
    assert before == {path: path.stat().st_mtime_ns for path in Path("cells").glob("*.png")}
    with pytest.raises(UsageError) as caught:
        drawn.save(Path("grid.png"))
    assert caught.value.reason == "file_exists"


def test_cells_have_the_marks_asked_for_and_tell_their_source(pipe: Pipeline) -> None:
    Image.new("RGB", (32, 32), "red").save("init.png")
    signed: list[list[str]] = []

    class Recorder:
        def sign(self, content: bytes, format: str, title: str, ingredients: Sequence[Ingredient]) -> bytes:
            signed.append([one.title for one in ingredients])
            return content

    marks = Marks(None, cast("Signer", Recorder()))
    lines = ["alice", {"prompt": "alice", "from": "init.png", "steps": 2}]
    assert statuses(pipe.run(lines, "out", marks=marks)) == ["drawn", "drawn"]
    assert sorted(signed) == [[], ["init.png"]]
    pipe.grid("alice", "seed=1,2", steps=1, folder="cells", marks=marks)
    assert len(signed) == 4


def test_a_grid_without_a_seed_has_the_same_in_all_cells(pipe: Pipeline) -> None:
    drawn = pipe.grid("alice on the beach", "text=beach,chess", "guidance=1,2.5", steps=1, folder="cells")
    assert len({request.seed for request in drawn.requests}) == 1
    assert [request.prompt.split()[-1] for request in drawn.requests] == ["beach", "chess"] * 2
    assert drawn.settings["seed"] == pipe.grid("alice", "guidance=1", steps=1, folder="cells").settings["seed"]


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        (("sed=1",), "invalid_axis"), (("seed",), "invalid_axis"), (("seed=",), "invalid_axis"),
        (("seed=1,x",), "invalid_axis"), (("person=a",), "axis_not_in_prompt"), (("text=z,a",), "axis_not_in_prompt"),
        (("seed=1,2", "seed=3"), "axes_equal"), ((f"seed={','.join(map(str, range(101)))}",), "too_many_cells"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit_are_refused(axes: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        grid_jobs({"prompt": "alice on the beach"}, *(parse_axis(axis) for axis in axes))
    assert caught.value.reason == reason


def test_axes_have_short_labels() -> None:
    assert (
        Axis("guidance", (3.0, 5.5)).label(3.0) == "guidance 3" and Axis("person", ("alice",)).label("alice") == "alice"
    )
    assert set(FIELDS) > {"seed", "steps", "guidance", "likeness", "strength", "sampler"}


def test_sheets_are_limited_and_sized_by_their_cells(pipe: Pipeline) -> None:
    paths = [image.path for image in pipe.run(JOBS, "out").images]
    Image.new("RGB", (40, 20)).save("bare.jpg")
    sheet = contact_sheet([*paths, Path("bare.jpg")], columns=2, cell=100)
    assert sheet.width == 2 * 108 + 8 and sheet.height > 2 * 108
    long = grid([[Image.new("RGB", (8, 8))]], [["many words " * 9]], cell=(100, 100), lines=3)
    assert long.height == 100 + 3 * 22 + 2 * 8
    for count, cell in ((0, 100), (1001, 64), (100, 1000), (4, 8)):
        with pytest.raises(UsageError):
            check_cells(count, cell, 1000)
