"""`celebctl run`, `grid` and `sheet`, on the toy bundle."""

import io
import json
from pathlib import Path

import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, refused, toy_bundle
from PIL import Image

from celebctl.cli.run import pace_text


@pytest.fixture
def draw(console: CommandLine) -> CommandLine:
    toy_bundle(console.library, make_identity("alice", 1))
    return console


def test_run_prints_each_image_and_draws_nothing_twice(draw: CommandLine) -> None:
    Path("jobs.csv").write_text("prompt,seed,count\nalice,5,2\nbeach,7,\n")
    result = draw("run", "jobs.csv")
    assert result.lines == ["jobs/0002-alice-5.png", "jobs/0002-alice-6.png", "jobs/0003-beach-7.png"], result.err
    assert result.code == 0 and "3 images drawn" in result.err
    again = draw("run", "jobs.csv", "--json")
    assert [image["status"] for image in again.document["images"]] == ["kept"] * 3
    assert (again.document["drawn"], again.document["folder"]) == (0, "jobs")
    refused(draw("run", "jobs.csv", "--name", "{line}/{seed}"), 2, "{line}/{seed}", "{slug}")


def test_run_reads_stdin(draw: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b'{"prompt": "alice", "seed": 3, "name": "a"}\n')

    monkeypatch.setattr("sys.stdin", Stdin)
    assert draw("run", "-").lines == ["run/a.png"]


def test_invalid_lines_end_a_run_before_it_begins_unless_it_keeps_going(draw: CommandLine) -> None:
    Path("jobs").write_text('{"prompt": "alice", "seed": 3}\n{"prompt": "alice", "stepz": 3}\n')
    refused(draw("run", "jobs"), 2, "jobs, line 2, stepz", "--keep-going")
    result = draw("run", "jobs", "--keep-going")
    assert result.code == 8 and result.lines == ["jobs-images/0001-alice-3.png"]
    assert "line 2, stepz" in result.err
    Path("jobs").write_text('{"prompt": "alice", "sed": 3}\n{"prompt": "alice", "stepz": 3}\n')
    several = draw("run", "jobs", "-k")
    refused(several, 2, "2 lines of jobs cannot be drawn")
    assert "line 1, sed" in several.err and "line 2, stepz" in several.err


def test_other_images_are_overwritten_with_force(draw: CommandLine) -> None:
    Path("jobs.jsonl").write_text('{"prompt": "alice", "seed": 3, "name": "a"}\n')
    draw("run", "jobs.jsonl")
    Path("jobs.jsonl").write_text('{"prompt": "alice", "seed": 4, "name": "a"}\n')
    refused(draw("run", "jobs.jsonl"), 2, "a.png", "--force")
    assert draw("run", "jobs.jsonl", "--force").lines == ["jobs/a.png"]


def test_a_failed_image_is_reported_and_ends_with_code_8(draw: CommandLine) -> None:
    Path("jobs.txt").write_text("alice\nbeach\n")
    Path("out").mkdir()
    (Path("out") / ".celebctl-run.jsonl").write_text('{"format": 1, "seed": 1}\n')
    first = draw("run", "jobs.txt", "--out", "dry", "--seed", "1").lines[0]
    (Path("out") / Path(first).name).mkdir()  # nothing can be written there
    result = draw("run", "jobs.txt", "--out", "out", "--force", "--json")
    assert result.code == 8 and [image["status"] for image in result.document["images"]] == ["failed", "drawn"]
    assert "not drawn: line 1" in result.err and result.document["images"][0]["error"]["code"] == "environment"


def test_a_watched_folder_is_drawn_until_it_is_empty(draw: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celebctl.jobs.watch.INTERVAL", 0.01)
    Path("in").mkdir()
    Path("in/a.txt").write_text("alice\n")
    result = draw("run", "--watch", "in", "--until-empty", "--json")
    assert result.code == 0 and result.document["files"][0]["file"] == "in/done/a.txt"
    Path("in/b.txt").write_text("<carl>\n")
    failed = draw("run", "--watch", "in", "--until-empty")
    assert failed.code == 8 and "line 1, prompt" in failed.err and Path("in/failed/b.txt").exists()
    refused(draw("run", "--watch", "nowhere"), 4, "nowhere")
    for words in ((), ("a.txt", "--watch", "in"), ("a.txt", "--until-empty")):
        assert draw("run", *words).code == 2


def test_grid_and_sheet_write_labelled_sheets(draw: CommandLine) -> None:
    result = draw("grid", "alice on the beach", "--x", "seed=1,2", "--y", "steps=1,2", "--separate", "cells", "--json")
    assert result.code == 0, result.err
    assert [request["steps"] for request in result.document["requests"]] == [1, 1, 2, 2]
    refused(draw("grid", "alice", "--x", "seed=1"), 2, "grid.png exists", "--force")
    refused(draw("grid", "alice", "--x", "seed=1,2", "--cell-size", "9000", "-o", "x.png"), 2, "9000")
    refused(draw("grid", "alice", "--x", "seed=1", "-o", "x.jpg"), 2, "x.jpg", "x.png")
    cells = sorted(Path("cells").glob("*.png"))
    assert [path.name for path in cells] == [
        "001-seed-1-steps-1.png", "002-seed-2-steps-1.png", "003-seed-1-steps-2.png", "004-seed-2-steps-2.png",
    ]  # fmt: skip
    assert draw("sheet", *cells, "--cell-size", "64").lines == ["sheet.png"]
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 2 * 72 + 8
    refused(draw("sheet", "nowhere.png", "-o", "y.png"), 4, "nowhere.png")
    assert json.loads(Path("cells/.celebctl-run.jsonl").read_text().splitlines()[0])["format"] == 1


def test_the_time_left_is_short() -> None:
    assert pace_text({}) == ""
    assert pace_text({"images_per_minute": 41.26, "seconds_left": 200.4}) == "41.3 images/min, 3:20 left"
    assert pace_text({"images_per_minute": 0.25, "seconds_left": 7325}) == "0.25 images/min, 2:02:05 left"
