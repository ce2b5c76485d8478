"""The desk: results on stdout, talk on stderr, an exit code and a hint for everything that goes wrong."""

import inspect
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import make_identity
from console_fakes import MODEL, Desk, Stage, recipe, refused, toy_bundle
from PIL import Image

from celebctl.library import Library

# Manners.


def test_no_words_show_the_commands(console: Desk) -> None:
    said = console()
    assert said.code == 0 and all(name in said.out for name in ("learn", "export", "gen", "forget"))


@pytest.mark.parametrize("words", [("--version",), ("--version", "--json")])
def test_version(console: Desk, words: tuple[str, ...]) -> None:
    assert console(*words).out.startswith("celebctl 0.")


@pytest.mark.parametrize(
    "command",
    [
        *("portrait", "check", "learn", "export", "gen", "regen", "list", "show", "rename", "forget"),
        *("export-embedding", "import", "inspect", "use", "setup", "doctor", "basis"),
    ],
)
def test_every_command_explains_itself(console: Desk, command: str) -> None:
    said = console(command, "--help")
    assert said.code == 0 and f"celebctl {command}" in said.out and not said.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("learnn",), "learnn"),
        (("gen",), "PROMPT"),
        (("gen", "alice", "--sheed", "3"), "--sheed"),
        (("gen", "alice", "--seed", "three"), "three"),
        (("gen", "alice", "-n", "0"), "-n 0"),
        (("gen", "alice", "-n", "1000000"), "-n 1000000"),
        (("gen", "alice", "--seed", "-1"), "seed -1"),
        (("gen", "alice", "--seed", str(2**63)), "seed"),
        (("gen", "alice", "--size", "big"), "'big'"),
        (("gen", "alice", "--size", "0x64"), "'0x64'"),
        (("gen", "alice", "--steps", "0"), "--steps 0"),
        (("gen", "alice", "--device", "gpu"), "gpu"),
        (("gen", "alice", "-o", "alice.jpg"), "alice.jpg"),
        (("gen", "alice", "-o", "-", "-n", "2"), "-o -"),
        (("export", "--dtype", "int4"), "int4"),
        (("export", "--add", "alice", "--out", "x"), "--add"),
        (("export", "--bundle", "x"), "--bundle"),
        (("portrait", "face.gif"), "face.gif"),
        (("portrait", "face.png", "--size", "9"), "--size 9"),
    ],
)
def test_usage_mistakes_are_code_2(console: Desk, words: tuple[str, ...], problem: str) -> None:
    refused(console(*words), 2, problem)


def test_json_answers_errors_with_one_document(console: Desk) -> None:
    said = console("show", "alice", "--json")
    assert said.code == 4
    assert said.document["error"]["code"] == "not_found" and "alice" in said.document["error"]["problem"]
    assert console("--json", "gen").document["error"]["code"] == "usage"


def test_global_options_stand_anywhere_but_not_behind_a_double_dash(console: Desk) -> None:
    console.know("alice")
    assert console("--json", "list").document == console("list", "--json").document
    toy_bundle(console.library)
    said = console("gen", "-o", "out.png", "--", "--json")
    assert said.code == 0 and recipe(console.folder / "out.png").prompt == "--json"


def test_quiet_leaves_results_only(console: Desk) -> None:
    toy_bundle(console.library)
    said = console("gen", "a beach", "--seed", "1", "-q")
    assert said.lines == ["a-beach-1.png"] and not said.err


def test_a_bug_is_code_1_without_a_trace_and_with_one_on_demand(console: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(self: Library, model_key: str | None = None) -> Any:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr(Library, "entries", break_down)
    refused(console("list"), 1, "ZeroDivisionError: by nobody", "--debug")
    said = console("list", "--debug")
    assert said.code == 1 and "Traceback" in said.err


def test_ctrl_c_is_130(console: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Library, model_key: str | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Library, "entries", stop)
    assert console("list").code == 130


def test_a_reader_that_leaves_early_is_no_trouble(console: Desk) -> None:
    console.know("alice")
    run = f"{shlex.quote(sys.executable)} -m celebctl"
    code = f"{run} show alice | true; {run} show alice --json | true"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, check=True)
    assert not done.stdout and not [line for line in done.stderr.splitlines() if not line.startswith("next:")]


def test_settings_that_are_wrong_are_said_by_every_command_that_reads_them(console: Desk) -> None:
    (console.folder / "celebctl.toml").write_text("modle = 'mini'")
    refused(console("gen", "alice"), 2, "modle", "did you mean model")


def test_the_stand_ins_have_the_real_signatures() -> None:
    """What the desk is tested with must be what it runs with."""
    import console_fakes

    from celebctl.basis.basis import build_basis
    from celebctl.model import Model
    from celebctl_export import export_bundle
    from celebctl_models.checkpoints.diffusion import load_parts

    pairs = [
        (Stage.learn, Model.learn),
        (console_fakes.contact_sheet, Model.contact_sheet),
        (console_fakes.build_basis, build_basis),
        (Stage().export_bundle, export_bundle),
        (console_fakes.load_parts, load_parts),
    ]
    for fake, real in pairs:
        assert list(inspect.signature(fake).parameters) == list(inspect.signature(real).parameters), real


def test_the_help_names_the_samplers_there_are() -> None:
    from celebctl.cli.options import SAMPLERS
    from celebctl_runtime.request import SAMPLERS as REAL

    assert tuple(SAMPLERS.split(", ")) == REAL


# portrait


def test_portrait_draws_and_tells_what_next(console: Desk) -> None:
    said = console("portrait", "face.jpg", "--seed", "7")
    assert said.lines == ["face.jpg"]
    assert "celebctl learn face.jpg --name alice" in said.err
    with Image.open("face.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)


@pytest.mark.parametrize(
    ("file", "known", "hint"),
    [
        ("bob.png", [], "celebctl learn bob.png --name bob"),
        ("bob.png", ["bob"], "celebctl learn bob.png --name bob-2"),
        ("face.png", ["alice", "alice-2"], "celebctl learn face.png --name alice-3"),
        ("my face.png", [], "celebctl learn 'my face.png' --name my_face"),
    ],
)
def test_portrait_suggests_a_name_that_is_free(console: Desk, file: str, known: list[str], hint: str) -> None:
    console.know(*known)
    assert f"next: {hint}\n" in console("portrait", file, "--seed", "7").err


def test_portrait_tells_the_seed_it_drew(console: Desk) -> None:
    document = console("portrait", "--json").document
    again = console("portrait", "again.png", "--seed", str(document["seed"]))
    assert again.code == 0 and Path("face.png").read_bytes() == Path("again.png").read_bytes()


def test_portrait_replaces_nothing_unasked(console: Desk) -> None:
    Path("face.png").write_text("mine")
    refused(console("portrait", "--seed", "1"), 2, "face.png exists", "--force")
    assert Path("face.png").read_text() == "mine"
    assert console("portrait", "--seed", "1", "--force").code == 0


# People.


def test_list_and_show(console: Desk) -> None:
    console.know("bob", "alice")
    assert console("list").lines == ["alice", "bob"]
    assert [person["name"] for person in console("list", "--json").document["people"]] == ["alice", "bob"]
    facts = console("show", "Alice", "--json").document
    assert facts["name"] == "alice" and facts["coefficients"] == 10 and facts["provenance"] == {"preset": "clean"}
    assert "provenance.preset: clean" in console("show", "alice").lines


def test_an_empty_list_is_no_error(console: Desk) -> None:
    said = console("list")
    assert said.code == 0 and not said.out and "celebctl learn" in said.err
    assert console("list", "--json").document == {"people": []}


def test_unknown_people_are_code_4_everywhere(console: Desk) -> None:
    console.know("alice")
    for words in (("show", "alcie"), ("forget", "alcie"), ("rename", "alcie", "bob")):
        refused(console(*words), 4, "alcie", "did you mean alice")
    assert console.library.names() == ["alice"]


def test_forget_is_all_or_nothing_and_empties_bundles(console: Desk) -> None:
    console.know("alice", "bob")
    toy_bundle(console.library, make_identity("alice", 1))
    refused(console("forget", "alice", "carol"), 4, "carol")
    assert console.library.names() == ["alice", "bob"] and console.bundle().names == ("alice",)
    assert console("forget", "alice", "bob").code == 0
    assert not console.library.names() and not console.bundle().names
    console.bundle().verify("full")


def test_rename_reaches_the_bundle(console: Desk) -> None:
    console.know("alice")
    toy_bundle(console.library, make_identity("alice", 1))
    refused(console("rename", "alice", "and"), 2, "'and'")
    assert console("rename", "alice", "carol").code == 0
    assert console.library.names() == ["carol"] and console.bundle().names == ("carol",)


def test_models_of_the_same_name_do_not_mix(console: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders called alike are two models, and a bundle remembers which of them it was made of."""
    for parent in ("one", "two"):
        (console.folder / parent / MODEL).mkdir(parents=True)
    assert console("gen", "beach", "--seed", "1", "--model", "one/toy").code == 0
    assert console("gen", "beach", "--seed", "2", "--model", "one/toy").code == 0
    assert len(console.stage.calls) == 1
    from celebctl.cli.bundles import find_bundle

    assert find_bundle(console.library, str(console.folder / "one" / "toy")) is not None
    assert find_bundle(console.library, "two/toy") is None
