"""`celebctl learn`: names, errors before the work, and what is stored."""

from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, refused, toy_bundle
from face_fakes import photo_of

from celebctl.learning.config import CLEAN


def test_learn_keeps_a_person_and_shows_them(console: CommandLine) -> None:
    result = console("learn", console.photo(), "--name", "alice")
    assert result.code == 0, result.err
    file, sheet = result.lines
    assert Path(file) == console.library.find("alice").path and sheet == "alice-sheet.png"
    assert Path(sheet).is_file() and "next: celebctl export" in result.err
    assert not list((console.library.root / "checkpoints").rglob("*.checkpoint"))


def test_learn_several_together_in_order(console: CommandLine) -> None:
    photos = [console.photo("one.png", (0, 0)), console.photo("two.png", (2, 2))]
    result = console("learn", *photos, "--name", "alice", "--name", "Bob", "--json")
    assert [person["name"] for person in result.document["people"]] == ["alice", "bob"]
    (call,) = console.installation.calls
    assert call["names"] == ["alice", "bob"] and len(call["faces"]) == 2
    assert result.document["sheet"] == "alice-bob-sheet.png" and console.library.names() == ["alice", "bob"]


def test_learn_takes_the_name_from_the_file(console: CommandLine) -> None:
    assert console("learn", console.photo("Alice Smith.png")).code == 0
    assert console.library.names() == ["alice_smith"]


@pytest.mark.parametrize("name", ["face.png", "IMG_2041.png", "selfie-3.png", "42.png", "DSC01234.png", "the.png"])
def test_a_file_name_that_is_no_name_asks_for_one(console: CommandLine, name: str) -> None:
    refused(console("learn", console.photo(name)), 2, name, f"celebctl learn {name} --name alice")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a b", "", "con", "NUL", "x" * 300, "álice", "a\0", "and", "1"])
def test_names_that_will_not_do_are_code_2(console: CommandLine, name: str) -> None:
    refused(console("learn", console.photo(), "--name", name), 2, "")
    assert not console.library.names() and not console.installation.calls


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("one.png", "two.png", "--name", "alice"), "photos (2) and of --name (1)"),
        (("one.png", "--name", "alice", "--name", "bob"), "photos (1) and of --name (2)"),
        (("one.png", "two.png", "--name", "alice", "--name", "Alice"), "alice"),
        (("one.png", "two.png", "--name", "a1", "--name", "b1", "--face", "1"), "photos (2) and of --face (1)"),
        (("one.png", "--name", "alice", "--steps", "0"), "steps 0"),
        (("one.png", "--name", "alice", "--instant", "--steps", "5"), "steps"),
        (("one.png", "--name", "alice", "--instant", "--steps", "5", "--resume"), "steps"),
        (("one.png", "--name", "alice", "--seed", "-4"), "seed -4"),
        (("one.png", "--name", "alice", "--preset", "magic"), "magic"),
        (("one.png", "--name", "alice", "--sheet", "sheet.txt"), "sheet.txt"),
        (("https://example.org/a.png", "--name", "alice"), "web address"),
    ],
)
def test_learn_requests_that_do_not_add_up(console: CommandLine, words: tuple[str, ...], problem: str) -> None:
    console.photo("one.png")
    console.photo("two.png")
    refused(console("learn", *words), 2, problem)
    assert not console.installation.calls


def test_photos_that_will_not_do(console: CommandLine) -> None:
    refused(console("learn", "face.jpg", "--name", "alice"), 4, "face.jpg", "celebctl sample-photo face.jpg")
    refused(console("learn", ".", "--name", "alice"), 4, "folder")
    Path("torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    refused(console("learn", "torn.jpg", "--name", "alice"), 3, "torn.jpg")
    photo_of().save("nobody.png")
    refused(console("learn", "nobody.png", "--name", "alice"), 3, "no face")
    assert not console.installation.calls and not console.library.names()


def test_two_faces_ask_which_one(console: CommandLine) -> None:
    both = console.photo("both.png", (0, 0), (3, 3))
    refused(console("learn", both, "--name", "alice"), 3, "2 faces: 1: ", "--face 1")
    refused(console("learn", both, "--name", "alice", "--face", "3"), 2, "no face number 3")
    result = console("learn", both, both, "--name", "alice", "--name", "bob", "--face", "2", "--face", "1")
    assert result.code == 0, result.err
    first, second = console.installation.calls[0]["faces"]
    assert first.box[0] > second.box[0]


def test_a_name_clash_is_refused_before_the_work_and_loses_nothing(console: CommandLine) -> None:
    console.add_people("alice")
    before = console.library.load("alice")
    refused(console("learn", console.photo(), "--name", "alice"), 2, "alice", "--force")
    assert not console.installation.calls and console.library.load("alice") == before
    assert console("learn", console.photo(), "--name", "alice", "--force").code == 0
    assert console.library.load("alice") != before


def test_presets_and_dials_reach_the_method(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    console("learn", console.photo(), "--name", "alice", "--steps", "17", "--seed", "5")
    monkeypatch.setenv("CELEBCTL_PRESET", "faithful")
    console("learn", console.photo(), "--name", "bob")
    console("learn", console.photo(), "--name", "carol", "--preset", "clean")
    configs = [call["config"] for call in console.installation.calls]
    assert [config.preset for config in configs] == ["clean", "faithful", "clean"]
    assert (configs[0].steps, configs[0].seed, configs[2].steps) == (17, 5, CLEAN.steps)


def test_ctrl_c_keeps_the_place_and_says_how_to_go_on(console: CommandLine) -> None:
    words = ("learn", console.photo("my photo.png"), "--name", "alice", "--steps", "9")
    console.installation.interrupt_at = 2
    result = console(*words)
    command = "celebctl learn 'my photo.png' --name alice --steps 9 --resume"
    assert result.code == 130 and f"continue with: {command}" in result.err
    assert not console.library.names() and not result.out
    console.installation.interrupt_at = None
    assert console(*words, "--resume").code == 0
    assert console.installation.calls[1]["resume"] and console.library.names() == ["alice"]
    refused(console("learn", console.photo(), "--name", "bob", "--resume"), 4, "nothing to resume", "without --resume")


def test_ctrl_c_before_there_is_anything_to_keep(console: CommandLine) -> None:
    console.installation.interrupt_at, console.installation.keep_checkpoint = 1, False
    result = console("learn", console.photo(), "--name", "alice")
    assert result.code == 130 and "before the first checkpoint" in result.err


def test_a_person_being_learned_elsewhere_is_busy(console: CommandLine) -> None:
    from test_library import HeldElsewhere

    with HeldElsewhere(console.library.root, "alice", "toy-01234567"):
        refused(console("learn", console.photo(), "--name", "alice"), 9, "alice")
    assert console("learn", console.photo(), "--name", "alice").code == 0


def test_the_sheet_goes_to_the_library_when_here_is_read_only(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celebctl_runtime import files
    from celebctl_runtime.errors import SetupError

    write = files.atomic_write

    def only_absolute(path: Path, content: Any) -> None:
        if not path.is_absolute():
            raise SetupError(f"cannot write {path}", "read-only")
        write(path, content)

    monkeypatch.setattr(files, "atomic_write", only_absolute)
    result = console("learn", console.photo(), "--name", "alice")
    assert result.code == 0 and result.lines[1] == str(console.library.root / "sheets" / "alice+sheet.png")
    refused(console("learn", console.photo(), "--name", "bob", "--sheet", "here.png"), 6, "here.png")


def test_sheets_overwrite_nothing_and_can_be_left_out(console: CommandLine) -> None:
    Path("alice-sheet.png").write_text("mine")
    assert console("learn", console.photo(), "--name", "alice").lines[1] == "alice-sheet-2.png"
    refused(console("learn", console.photo(), "--name", "bob", "--sheet", "alice-sheet.png"), 2, "exists", "--force")
    assert len(console("learn", console.photo(), "--name", "bob", "--no-sheet").lines) == 1
    assert Path("alice-sheet.png").read_text() == "mine"


def test_people_who_look_alike_are_pointed_out(console: CommandLine, caplog: pytest.LogCaptureFixture) -> None:
    result = console("learn", console.photo("a1.png"), console.photo("b1.png"), "--name", "ann", "--name", "anna")
    assert result.code == 0 and any("ann and anna" in record.getMessage() for record in caplog.records)


def test_the_learned_move_into_a_bundle_that_is_there(console: CommandLine) -> None:
    toy_bundle(console.library)
    result = console("learn", console.photo(), "--name", "alice")
    assert "next: celebctl gen" in result.err and console.bundle().names == ("alice",)
    console("learn", console.photo(), "--name", "alice", "--force", "--seed", "3")
    assert console.bundle().manifest.identities["alice"].digest == console.library.load("alice").digest


def test_a_full_bundle_does_not_undo_the_learning(console: CommandLine) -> None:
    toy_bundle(console.library, *(make_identity(name) for name in ("p1", "p2", "p3", "p4")))
    result = console("learn", console.photo(), "--name", "alice")
    assert result.code == 0 and "note: not added to the bundle" in result.err
    assert console.library.names() == ["alice"]


def test_a_model_without_face_models_says_what_to_give(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELEBCTL_FACE_MODELS")
    monkeypatch.setenv("HOME", str(console.library.root))  # insightface's own folder would be found there
    result = console("learn", console.photo(), "--name", "alice", "--model", "owner/model")
    refused(result, 4, "buffalo_l", "celebctl download buffalo_l")
    refused(console("learn", console.photo(), "--name", "alice", "--face-models", "nowhere"), 4, "nowhere")


def test_missing_extras_are_named() -> None:
    from celebctl.cli.extras import requires_extra
    from celebctl_runtime.errors import SetupError

    with pytest.raises(SetupError) as error, requires_extra("learn", "learning"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert "torch" in error.value.problem and 'pip install "celebctl[learn]"' in error.value.hint
    with pytest.raises(ModuleNotFoundError), requires_extra("learn", "learning"):
        raise ModuleNotFoundError("a bug", name="celebctl.lost")
