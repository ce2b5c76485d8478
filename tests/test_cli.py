"""The command line: results on stdout, messages on stderr, an exit code and a hint for every error."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from bundle_fakes import make_identity
from console_fakes import MODEL, CommandLine, FakeInstallation, recipe, refused, toy_bundle
from PIL import Image

from celebctl.cli import FORMER_OPTIONS, replace_former_options
from celebctl.cli.app import FORMER_COMMANDS, app
from celebctl.cli.hints import HINTS, hint_for
from celebctl.library import Library
from celebctl_runtime.errors import UsageError

# Output and errors.


def test_no_arguments_show_the_commands(console: CommandLine) -> None:
    result = console()
    assert result.code == 0 and all(name in result.out for name in ("learn", "export", "gen", "rm"))


@pytest.mark.parametrize("words", [("--version",), ("--version", "--json")])
def test_version(console: CommandLine, words: tuple[str, ...]) -> None:
    assert console(*words).out.startswith("celebctl 0.")


@pytest.mark.parametrize(
    "command",
    [
        *("sample-photo", "check", "learn", "export", "gen", "regen", "list", "show", "rename", "rm"),
        *("export-embedding", "import", "inspect", "use", "download", "doctor", "basis"),
    ],
)
def test_every_command_explains_itself(console: CommandLine, command: str) -> None:
    result = console(command, "--help")
    assert result.code == 0 and f"celebctl {command}" in result.out and not result.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("learnn",), "learnn"),
        (("gen",), "PROMPT"),
        (("gen", "alice", "--sheed", "3"), "--sheed"),
        (("gen", "alice", "--seed", "three"), "three"),
        (("gen", "alice", "-n", "0"), "0"),
        (("gen", "alice", "-n", "1000000"), "1000000"),
        (("gen", "alice", "--seed", "-1"), "seed -1"),
        (("gen", "alice", "--seed", str(2**63)), "seed"),
        (("gen", "alice", "--size", "big"), "'big'"),
        (("gen", "alice", "--size", "0x64"), "'0x64'"),
        (("gen", "alice", "--steps", "0"), "--steps 0"),
        (("gen", "alice", "--device", "gpu"), "gpu"),
        (("gen", "alice", "-o", "alice.gif"), "alice.gif"),
        (("gen", "alice", "-o", "-", "-n", "2"), "-o -"),
        (("export", "--dtype", "int4"), "int4"),
        (("export", "--add", "alice", "--out", "x"), "--add"),
        (("export", "--bundle", "x"), "--bundle"),
        (("sample-photo", "face.gif"), "face.gif"),
        (("sample-photo", "face.png", "--size", "9"), "--size 9"),
    ],
)
def test_usage_errors_are_code_2(console: CommandLine, words: tuple[str, ...], problem: str) -> None:
    refused(console(*words), 2, problem)


def test_json_prints_errors_as_one_document(console: CommandLine) -> None:
    result = console("show", "alice", "--json")
    assert result.code == 4
    assert result.document["error"]["code"] == "not_found" and "alice" in result.document["error"]["problem"]
    assert console("--json", "gen").document["error"]["code"] == "usage"


def test_global_options_stand_anywhere_but_not_behind_a_double_dash(console: CommandLine) -> None:
    console.add_people("alice")
    assert console("--json", "list").document == console("list", "--json").document
    toy_bundle(console.library)
    result = console("gen", "-o", "out.png", "--", "--json")
    assert result.code == 0 and recipe(console.folder / "out.png").prompt == "--json"


def test_quiet_leaves_results_only(console: CommandLine) -> None:
    toy_bundle(console.library)
    result = console("gen", "a beach", "--seed", "1", "-q")
    assert result.lines == ["a-beach-1.png"] and not result.err


def test_a_bug_is_code_1_without_a_trace_and_with_one_on_demand(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(self: Library, model_key: str | None = None) -> Any:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(Library, "entries", break_down)
    refused(console("list"), 1, "ZeroDivisionError: broken", "--debug")
    result = console("list", "--debug")
    assert result.code == 1 and "Traceback" in result.err


def test_ctrl_c_is_130(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Library, model_key: str | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Library, "entries", stop)
    assert console("list").code == 130


def test_a_closed_pipe_is_no_error(console: CommandLine) -> None:
    console.add_people("alice")
    run = f"{shlex.quote(sys.executable)} -m celebctl"
    code = f"{run} show alice | true; {run} show alice --json | true"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, check=True)
    assert not done.stdout and not [line for line in done.stderr.splitlines() if not line.startswith("next:")]


def test_invalid_settings_are_reported_by_every_command_that_reads_them(console: CommandLine) -> None:
    (console.folder / "celebctl.toml").write_text("modle = 'mini'")
    refused(console("gen", "alice"), 2, "modle", "model")


def test_the_fakes_have_the_real_signatures() -> None:
    """The commands must be tested with the interfaces they run with."""
    import console_fakes

    from celebctl.basis.basis import build_basis
    from celebctl.model import LearnOptions, Model
    from celebctl_export import export_bundle
    from celebctl_models.checkpoints.diffusion import load_parts

    pairs = [
        (console_fakes.contact_sheet, Model.contact_sheet),
        (console_fakes.build_basis, build_basis),
        (FakeInstallation().export_bundle, export_bundle),
        (console_fakes.load_parts, load_parts),
    ]
    for fake, real in pairs:
        assert list(inspect.signature(fake).parameters) == list(inspect.signature(real).parameters), real
    learn = set(inspect.signature(FakeInstallation.learn).parameters)
    assert learn == {"self", "photo", "name", "names", *LearnOptions.__annotations__}


def test_the_help_names_the_samplers_there_are() -> None:
    from celebctl.cli.options import SAMPLERS
    from celebctl_runtime.request import SAMPLERS as REAL

    assert tuple(SAMPLERS.split(", ")) == REAL


# sample-photo


def test_sample_photo_draws_and_suggests_the_next_command(console: CommandLine) -> None:
    result = console("sample-photo", "face.jpg", "--seed", "7")
    assert result.lines == ["face.jpg"]
    assert "celebctl learn face.jpg --name alice" in result.err
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
def test_sample_photo_suggests_a_free_name(console: CommandLine, file: str, known: list[str], hint: str) -> None:
    console.add_people(*known)
    assert f"next: {hint}\n" in console("sample-photo", file, "--seed", "7").err


def test_sample_photo_reports_its_seed(console: CommandLine) -> None:
    document = console("sample-photo", "--json").document
    again = console("sample-photo", "again.png", "--seed", str(document["seed"]))
    assert again.code == 0 and Path("face.png").read_bytes() == Path("again.png").read_bytes()


def test_sample_photo_overwrites_only_with_force(console: CommandLine) -> None:
    Path("face.png").write_text("mine")
    refused(console("sample-photo", "--seed", "1"), 2, "face.png exists", "--force")
    assert Path("face.png").read_text() == "mine"
    assert console("sample-photo", "--seed", "1", "--force").code == 0


# People.


def test_list_and_show(console: CommandLine) -> None:
    console.add_people("bob", "alice")
    assert console("list").lines == ["alice", "bob"]
    assert [person["name"] for person in console("list", "--json").document["people"]] == ["alice", "bob"]
    facts = console("show", "Alice", "--json").document
    assert facts["name"] == "alice" and facts["coefficients"] == 10 and facts["provenance"] == {"preset": "clean"}
    assert "provenance.preset: clean" in console("show", "alice").lines


def test_an_empty_list_is_no_error(console: CommandLine) -> None:
    result = console("list")
    assert result.code == 0 and not result.out and "celebctl learn" in result.err
    assert console("list", "--json").document == {"people": []}


def test_unknown_people_are_code_4_everywhere(console: CommandLine) -> None:
    console.add_people("alice")
    for words in (("show", "alcie"), ("rm", "alcie"), ("rename", "alcie", "bob")):
        refused(console(*words), 4, "alcie", "did you mean alice")
    assert console.library.names() == ["alice"]


def test_rm_is_all_or_nothing_and_removes_from_bundles(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library, make_identity("alice", 1))
    refused(console("rm", "alice", "carol"), 4, "carol")
    assert console.library.names() == ["alice", "bob"] and console.bundle().names == ("alice",)
    assert console("rm", "alice", "bob").code == 0
    assert not console.library.names() and not console.bundle().names
    console.bundle().verify("full")


def test_rename_reaches_the_bundle(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library, make_identity("alice", 1))
    refused(console("rename", "alice", "and"), 2, "'and'")
    assert console("rename", "alice", "carol").code == 0
    assert console.library.names() == ["carol"] and console.bundle().names == ("carol",)


def test_models_of_the_same_name_do_not_mix(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders called alike are two models, and a bundle remembers which of them it was made of."""
    for parent in ("one", "two"):
        (console.folder / parent / MODEL).mkdir(parents=True)
    assert console("gen", "beach", "--seed", "1", "--model", "one/toy").code == 0
    assert console("gen", "beach", "--seed", "2", "--model", "one/toy").code == 0
    assert len(console.installation.calls) == 1
    from celebctl.bundles import find_bundle

    assert find_bundle(console.library, str(console.folder / "one" / "toy")) is not None
    assert find_bundle(console.library, "two/toy") is None


# Former names.


@pytest.mark.parametrize(("former", "current"), FORMER_COMMANDS.items())
def test_former_commands_are_hidden_and_equal_the_current_ones(console: CommandLine, former: str, current: str) -> None:
    commands: Any = typer.main.get_command(app)
    old, new = commands.commands[former], commands.commands[current]
    assert old.hidden and not new.hidden
    assert (old.help, [p.name for p in old.params]) == (new.help, [p.name for p in new.params])
    assert console(former, "--help").code == 0


def test_former_options_are_replaced_by_their_current_names() -> None:
    commands: Any = typer.main.get_command(app)
    for command, options in FORMER_OPTIONS.items():
        for former, current in options.items():
            words = [command or "show", "alice", former, "x", f"{former}=y", "--", former]
            expected = [command or "show", "alice", current, "x", f"{current}=y", "--", former]
            assert replace_former_options(words) == expected
            assert any(current in parameter.opts for parameter in commands.commands[command or "show"].params)


# Hints.


def commands_in(hint: str) -> list[list[str]]:
    """The arguments of each `celebctl ...` command in a hint, with the values of an example."""
    numbers = {"count": "2", "most": "9", "last": "9", "spare_rows": "512"}
    filled = re.sub(r"\{(\w+)\}", lambda found: numbers.get(found[1], "value"), hint)
    return [shlex.split(command)[1:] for command in re.findall(r"celebctl [^;,()]+", filled)]


@pytest.mark.parametrize("reason", HINTS)
def test_the_commands_in_hints_parse(reason: str) -> None:
    for words in commands_in(HINTS[reason]):
        assert_parses(words)


def assert_parses(words: list[str]) -> None:
    """Parse a command without running it. A verb may follow the command: `celebctl list shows ...`."""
    commands: Any = typer.main.get_command(app)
    group, name = commands, words[0]
    rest = words[1:]
    if name == "basis":
        group, name, rest = commands.commands[name], rest[0], rest[1:]
    command = group.commands[name]
    if not any(word.startswith("-") for word in rest) and not any(
        p.param_type_name == "argument" for p in command.params
    ):
        rest = []  # prose after the command
    command.make_context(name, list(rest))


@pytest.mark.parametrize("reason", ["name_taken", "no_bundle"])
def test_the_hint_of_a_reason_has_the_quoted_values(reason: str) -> None:
    hint = hint_for(UsageError("problem", "library hint", reason=reason, name="a b", model="my model"))
    assert shlex.quote("a b" if reason == "name_taken" else "my model") in hint and "library hint" not in hint
    assert hint_for(UsageError("problem", "library hint", reason=reason)) == "library hint"
