"""The desk: results on stdout, talk on stderr, an exit code and a hint for everything that goes wrong."""

import errno
import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bundle_doubles import make_identity
from desk_doubles import MODEL, Stage, recipe, set_stage, toy_bundle
from face_doubles import photo_of
from PIL import Image

from celebctl.cli import main
from celebctl.library import Library
from celebctl_runtime.bundle import Bundle
from celebctl_runtime.picture import read_request


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Desk:
    """A shell in an empty folder, with an empty library and stand-ins behind the desk."""

    def __init__(self, stage: Stage, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.stage, self.folder, self._capsys = stage, folder, capsys
        self.library = Library()

    def __call__(self, *words: str | Path) -> Said:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return Said(code, out, err)

    def photo(self, name: str = "alice.png", *cells: tuple[int, int]) -> str:
        photo_of(*(cells or ((1, 1),))).save(self.folder / name)
        return name

    def know(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            self.library.save(make_identity(name, seed=number))

    def bundle(self) -> Bundle:
        return Bundle.open(self.library.bundles()[0])


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Desk(set_stage(monkeypatch, tmp_path), folder, capsys)


def refused(said: Said, code: int, problem: str, hint: str = "") -> None:
    """An error is one line that says what, and one that says what to type; nothing is a result."""
    assert said.code == code, said.err
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in said.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == 1 and problem in errors[0], said.err
    assert hints and hint in hints[0], said.err
    assert "Traceback" not in said.err and not said.out


# Manners.


def test_no_words_show_the_commands(desk: Desk) -> None:
    said = desk()
    assert said.code == 0 and all(name in said.out for name in ("learn", "export", "gen", "forget"))


@pytest.mark.parametrize("words", [("--version",), ("--version", "--json")])
def test_version(desk: Desk, words: tuple[str, ...]) -> None:
    assert desk(*words).out.startswith("celebctl 0.")


@pytest.mark.parametrize(
    "command",
    [
        *("portrait", "check", "learn", "export", "gen", "regen", "list", "show", "rename", "forget"),
        *("export-embedding", "import", "inspect", "use", "setup", "doctor", "basis"),
    ],
)
def test_every_command_explains_itself(desk: Desk, command: str) -> None:
    said = desk(command, "--help")
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
def test_usage_mistakes_are_code_2(desk: Desk, words: tuple[str, ...], problem: str) -> None:
    refused(desk(*words), 2, problem)


def test_json_answers_errors_with_one_document(desk: Desk) -> None:
    said = desk("show", "alice", "--json")
    assert said.code == 4
    assert said.document["error"]["code"] == "not_found" and "alice" in said.document["error"]["problem"]
    assert desk("--json", "gen").document["error"]["code"] == "usage"


def test_global_options_stand_anywhere_but_not_behind_a_double_dash(desk: Desk) -> None:
    desk.know("alice")
    assert desk("--json", "list").document == desk("list", "--json").document
    toy_bundle(desk.library)
    said = desk("gen", "-o", "out.png", "--", "--json")
    assert said.code == 0 and recipe(desk.folder / "out.png").prompt == "--json"


def test_quiet_leaves_results_only(desk: Desk) -> None:
    toy_bundle(desk.library)
    said = desk("gen", "a beach", "--seed", "1", "-q")
    assert said.lines == ["a-beach-1.png"] and not said.err


def test_a_bug_is_code_1_without_a_trace_and_with_one_on_demand(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(self: Library, shelf: str | None = None) -> Any:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr(Library, "entries", break_down)
    refused(desk("list"), 1, "ZeroDivisionError: by nobody", "--debug")
    said = desk("list", "--debug")
    assert said.code == 1 and "Traceback" in said.err


def test_ctrl_c_is_130(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Library, shelf: str | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Library, "entries", stop)
    assert desk("list").code == 130


def test_a_reader_that_leaves_early_is_no_trouble(desk: Desk) -> None:
    desk.know("alice")
    code = f"{sys.executable} -m celebctl show alice | true; {sys.executable} -m celebctl show alice --json | true"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, check=True)
    assert not done.stdout and not [line for line in done.stderr.splitlines() if not line.startswith("next:")]


def test_settings_that_are_wrong_are_said_by_every_command_that_reads_them(desk: Desk) -> None:
    (desk.folder / "celebctl.toml").write_text("modle = 'mini'")
    refused(desk("gen", "alice"), 2, "modle", "did you mean model")


def test_the_stand_ins_have_the_real_signatures() -> None:
    """What the desk is tested with must be what it runs with."""
    import desk_doubles

    from celebctl import method
    from celebctl.method.celebrities import with_faces
    from celebctl_export import export_bundle
    from celebctl_models.diffusion import load_parts

    real = {
        "with_faces": with_faces,
        "learn_people": method.learn_people,
        "build_basis": method.build_basis,
        "contact_sheet": method.contact_sheet,
        "export_bundle": export_bundle,
        "load_parts": load_parts,
    }
    stage = Stage()
    for name, function in real.items():
        double = getattr(stage, name, None) or getattr(desk_doubles, name)
        assert list(inspect.signature(double).parameters) == list(inspect.signature(function).parameters), name
    news = list(inspect.signature(method.LearnStep).parameters)
    assert news == list(inspect.signature(desk_doubles.LearnStep).parameters)


def test_the_help_names_the_samplers_there_are() -> None:
    from celebctl.cli.options import SAMPLERS
    from celebctl_runtime.request import SAMPLERS as REAL

    assert tuple(SAMPLERS.split(", ")) == REAL


# portrait


def test_portrait_draws_and_tells_what_next(desk: Desk) -> None:
    said = desk("portrait", "face.jpg", "--seed", "7")
    assert said.lines == ["face.jpg"]
    assert "celebctl learn face.jpg --name alice" in said.err
    with Image.open("face.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)


def test_portrait_tells_the_seed_it_drew(desk: Desk) -> None:
    document = desk("portrait", "--json").document
    again = desk("portrait", "again.png", "--seed", str(document["seed"]))
    assert again.code == 0 and Path("face.png").read_bytes() == Path("again.png").read_bytes()


def test_portrait_replaces_nothing_unasked(desk: Desk) -> None:
    Path("face.png").write_text("mine")
    refused(desk("portrait", "--seed", "1"), 2, "face.png exists", "--force")
    assert Path("face.png").read_text() == "mine"
    assert desk("portrait", "--seed", "1", "--force").code == 0


# learn


def test_learn_keeps_a_person_and_shows_them(desk: Desk) -> None:
    said = desk("learn", desk.photo(), "--name", "alice")
    assert said.code == 0, said.err
    file, sheet = said.lines
    assert Path(file) == desk.library.find("alice").path and sheet == "alice-sheet.png"
    assert Path(sheet).is_file() and "next: celebctl export" in said.err
    assert not list((desk.library.root / "unfinished").rglob("*.checkpoint"))


def test_learn_several_together_in_order(desk: Desk) -> None:
    photos = [desk.photo("one.png", (0, 0)), desk.photo("two.png", (2, 2))]
    said = desk("learn", *photos, "--name", "alice", "--name", "Bob", "--json")
    assert [person["name"] for person in said.document["people"]] == ["alice", "bob"]
    (call,) = desk.stage.calls
    assert call["names"] == ["alice", "bob"] and [len(faces) for faces in call["faces"]] == [1, 1]
    assert said.document["sheet"] == "alice-bob-sheet.png" and desk.library.names() == ["alice", "bob"]


def test_learn_takes_the_name_from_the_file(desk: Desk) -> None:
    assert desk("learn", desk.photo("Alice Smith.png")).code == 0
    assert desk.library.names() == ["alice_smith"]


@pytest.mark.parametrize("name", ["face.png", "IMG_2041.png", "selfie-3.png", "42.png", "DSC01234.png", "the.png"])
def test_a_file_name_that_names_nobody_asks_for_a_name(desk: Desk, name: str) -> None:
    refused(desk("learn", desk.photo(name)), 2, name, f"celebctl learn {name} --name alice")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a b", "", "con", "NUL", "x" * 300, "álice", "a\0", "and", "1"])
def test_names_that_will_not_do_are_code_2(desk: Desk, name: str) -> None:
    refused(desk("learn", desk.photo(), "--name", name), 2, "")
    assert not desk.library.names() and not desk.stage.calls


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("one.png", "two.png", "--name", "alice"), "2 photos and 1 name"),
        (("one.png", "--name", "alice", "--name", "bob"), "1 photo and 2 names"),
        (("one.png", "two.png", "--name", "alice", "--name", "Alice"), "two people would be called alice"),
        (("one.png", "two.png", "--name", "a1", "--name", "b1", "--face", "1"), "2 photos and 1 --face"),
        (("one.png", "--name", "alice", "--steps", "0"), "--steps 0"),
        (("one.png", "--name", "alice", "--seed", "-4"), "--seed -4"),
        (("one.png", "--name", "alice", "--preset", "magic"), "magic"),
        (("one.png", "--name", "alice", "--sheet", "sheet.txt"), "sheet.txt"),
        (("https://example.org/a.png", "--name", "alice"), "web address"),
    ],
)
def test_learn_requests_that_do_not_add_up(desk: Desk, words: tuple[str, ...], problem: str) -> None:
    desk.photo("one.png")
    desk.photo("two.png")
    refused(desk("learn", *words), 2, problem)
    assert not desk.stage.calls


def test_photos_that_will_not_do(desk: Desk) -> None:
    refused(desk("learn", "face.jpg", "--name", "alice"), 4, "face.jpg", "celebctl portrait face.jpg")
    refused(desk("learn", ".", "--name", "alice"), 4, "folder")
    Path("torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    refused(desk("learn", "torn.jpg", "--name", "alice"), 3, "torn.jpg")
    photo_of().save("nobody.png")
    refused(desk("learn", "nobody.png", "--name", "alice"), 3, "no face")
    assert not desk.stage.calls and not desk.library.names()


def test_two_faces_ask_which_one(desk: Desk) -> None:
    both = desk.photo("both.png", (0, 0), (3, 3))
    refused(desk("learn", both, "--name", "alice"), 3, "2 faces: 1: ", "--face 1")
    refused(desk("learn", both, "--name", "alice", "--face", "3"), 2, "no face number 3")
    said = desk("learn", both, both, "--name", "alice", "--name", "bob", "--face", "2", "--face", "1")
    assert said.code == 0, said.err
    (first,), (second,) = desk.stage.calls[0]["faces"]
    assert first.box[0] > second.box[0]


def test_a_name_clash_is_refused_before_the_work_and_loses_nothing(desk: Desk) -> None:
    desk.know("alice")
    before = desk.library.load("alice")
    refused(desk("learn", desk.photo(), "--name", "alice"), 2, "already know alice", "--force")
    assert not desk.stage.calls and desk.library.load("alice") == before
    assert desk("learn", desk.photo(), "--name", "alice", "--force").code == 0
    assert desk.library.load("alice") != before


def test_presets_and_dials_reach_the_method(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk("learn", desk.photo(), "--name", "alice", "--steps", "17", "--seed", "5")
    monkeypatch.setenv("CELEBCTL_PRESET", "faithful")
    desk("learn", desk.photo(), "--name", "bob")
    desk("learn", desk.photo(), "--name", "carol", "--preset", "clean")
    configs = [call["config"] for call in desk.stage.calls]
    assert [config.preset for config in configs] == ["clean", "faithful", "clean"]
    assert (configs[0].steps, configs[0].seed) == (17, 5) and configs[2].steps == 3


def test_ctrl_c_keeps_the_place_and_says_how_to_go_on(desk: Desk) -> None:
    words = ("learn", desk.photo("my photo.png"), "--name", "alice", "--steps", "9")
    desk.stage.interrupt_at = 2
    said = desk(*words)
    assert said.code == 130 and "go on with: celebctl learn 'my photo.png' --name alice --steps 9 --resume" in said.err
    assert not desk.library.names() and not said.out
    desk.stage.interrupt_at = None
    assert desk(*words, "--resume").code == 0
    assert desk.stage.calls[1]["resume_from"] is not None and desk.library.names() == ["alice"]
    refused(desk("learn", desk.photo(), "--name", "bob", "--resume"), 4, "nothing to resume", "without --resume")


def test_ctrl_c_before_there_is_anything_to_keep(desk: Desk) -> None:
    desk.stage.interrupt_at, desk.stage.keep_checkpoint = 1, False
    said = desk("learn", desk.photo(), "--name", "alice")
    assert said.code == 130 and "before there was anything to keep" in said.err


def test_somebody_being_learned_elsewhere_is_busy(desk: Desk) -> None:
    from test_library import HeldElsewhere

    with HeldElsewhere(desk.library.root, "alice", "toy-01234567"):
        refused(desk("learn", desk.photo(), "--name", "alice"), 9, "working on alice")
    assert desk("learn", desk.photo(), "--name", "alice").code == 0


def test_the_sheet_goes_to_the_library_when_here_is_read_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from celebctl_runtime import files
    from celebctl_runtime.errors import EnvironmentProblem

    write = files.atomic_write

    def only_absolute(path: Path, content: Any) -> None:
        if not path.is_absolute():
            raise EnvironmentProblem(f"cannot write {path}", "read-only")
        write(path, content)

    monkeypatch.setattr(files, "atomic_write", only_absolute)
    said = desk("learn", desk.photo(), "--name", "alice")
    assert said.code == 0 and said.lines[1] == str(desk.library.root / "sheets" / "alice-sheet.png")
    refused(desk("learn", desk.photo(), "--name", "bob", "--sheet", "here.png"), 6, "here.png")


def test_sheets_overwrite_nothing_and_can_be_left_out(desk: Desk) -> None:
    Path("alice-sheet.png").write_text("mine")
    assert desk("learn", desk.photo(), "--name", "alice").lines[1] == "alice-sheet-2.png"
    refused(desk("learn", desk.photo(), "--name", "bob", "--sheet", "alice-sheet.png"), 2, "exists", "--force")
    assert len(desk("learn", desk.photo(), "--name", "bob", "--no-sheet").lines) == 1
    assert Path("alice-sheet.png").read_text() == "mine"


def test_people_who_look_alike_are_pointed_out(desk: Desk) -> None:
    said = desk("learn", desk.photo("a1.png"), desk.photo("b1.png"), "--name", "ann", "--name", "anna")
    assert said.code == 0 and "note: ann and anna look alike (1.00)" in said.err


def test_the_learned_move_into_a_bundle_that_is_there(desk: Desk) -> None:
    toy_bundle(desk.library)
    said = desk("learn", desk.photo(), "--name", "alice")
    assert "next: celebctl gen" in said.err and desk.bundle().names == ("alice",)
    desk("learn", desk.photo(), "--name", "alice", "--force", "--seed", "3")
    assert desk.bundle().manifest.identities["alice"].digest == desk.library.load("alice").digest


def test_a_full_bundle_does_not_undo_the_learning(desk: Desk) -> None:
    toy_bundle(desk.library, *(make_identity(name) for name in ("p1", "p2", "p3", "p4")))
    said = desk("learn", desk.photo(), "--name", "alice")
    assert said.code == 0 and "note: not in the bundle yet" in said.err and "--spare-rows" in said.err
    assert desk.library.names() == ["alice"]


def test_a_model_without_face_models_says_what_to_give(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELEBCTL_FACE_MODELS")
    monkeypatch.setenv("HOME", str(desk.library.root))  # insightface's own folder would be found there
    said = desk("learn", desk.photo(), "--name", "alice", "--model", "owner/model")
    refused(said, 4, "buffalo_l are not on this machine", "celebctl setup buffalo_l")
    refused(desk("learn", desk.photo(), "--name", "alice", "--face-models", "nowhere"), 4, "nowhere")


def test_missing_extras_are_named() -> None:
    from celebctl.cli.extras import needs
    from celebctl_runtime.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem) as error, needs("learn", "learning"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert "torch" in error.value.problem and 'pip install "celebctl[learn]"' in error.value.hint
    with pytest.raises(ModuleNotFoundError), needs("learn", "learning"):
        raise ModuleNotFoundError("a bug", name="celebctl.lost")


# export


def test_export_takes_everybody_or_those_named(desk: Desk) -> None:
    desk.know("alice", "bob", "carol")
    said = desk("export")
    assert said.lines == [str(desk.library.bundles()[0])]
    assert desk.bundle().names == ("alice", "bob", "carol") and 'celebctl gen "alice and bob' in said.err
    said = desk("export", "bob", "--out", "bundle", "--json")
    assert said.document["people"] == ["bob"] and Bundle.open(desk.folder / "bundle").names == ("bob",)
    refused(desk("export", "bbo", "--out", "other"), 4, "bbo", "did you mean bob")


def test_people_move_in_and_out_without_an_export(desk: Desk) -> None:
    desk.know("alice", "bob")
    refused(desk("export", "--add", "alice"), 4, "no bundle", "celebctl export")
    toy_bundle(desk.library, make_identity("carol", 9))
    said = desk("export", "--add", "alice", "--add", "bob", "--remove", "carol", "--json")
    assert said.document["people"] == ["alice", "bob"] and not desk.stage.calls
    refused(desk("export", "--remove", "carol"), 4, "carol", "alice and bob")
    assert desk.bundle().names == ("alice", "bob")


# gen


def test_gen_writes_a_picture_named_after_prompt_and_seed(desk: Desk) -> None:
    desk.know("alice", "bob")
    toy_bundle(desk.library)
    said = desk("gen", "Alice and Bob, playing chess!", "--seed", "4")
    assert said.lines == ["alice-and-bob-playing-chess-4.png"], said.err
    assert recipe(desk.folder / said.lines[0]).identities == ("alice", "bob")
    assert "alice and bob;" in said.err and "draw it again: celebctl regen" in said.err


def test_gen_makes_a_bundle_when_there_is_none(desk: Desk) -> None:
    desk.know("alice")
    said = desk("gen", "alice", "--seed", "1")
    assert said.lines == ["alice-1.png"] and "no bundle of toy yet; making one" in said.err
    assert desk("gen", "alice", "--seed", "2").code == 0 and len(desk.stage.calls) == 1


def test_gen_brings_those_it_needs_into_the_bundle(desk: Desk) -> None:
    """Only those whom the prompt names: a bundle has room for some, a library for thousands."""
    toy_bundle(desk.library, make_identity("alice", 1))
    desk.know("alice", "bob", "carol")
    assert "added bob to the bundle" in desk("gen", "alice and bob").err
    assert desk.bundle().names == ("alice", "bob")
    desk.library.save(make_identity("alice", 77), overwrite=True)
    desk("gen", "<alice>")
    assert desk.bundle().manifest.identities["alice"].digest == make_identity("alice", 77).digest


def test_a_given_bundle_is_left_as_it_is(desk: Desk) -> None:
    desk.know("alice")
    bundle = toy_bundle(Library(desk.folder / "elsewhere"))
    before = (bundle.path / "manifest.json").read_bytes()
    assert desk("gen", "alice", "--bundle", bundle.path).code == 0
    assert (bundle.path / "manifest.json").read_bytes() == before
    refused(desk("gen", "alice", "--bundle", "nowhere"), 4, "nowhere")


def test_an_unknown_name_in_brackets_is_code_4_with_a_suggestion(desk: Desk) -> None:
    desk.know("carol")
    toy_bundle(desk.library)
    refused(desk("gen", "<carl> on the beach"), 4, "<carl>", "carol")
    assert not list(desk.folder.glob("*.png"))


def test_somebody_of_another_model_is_a_plain_word_and_that_is_said(desk: Desk) -> None:
    toy_bundle(desk.library)
    desk.library.save(make_identity("zoe", table_hash="f" * 64))
    said = desk("gen", "zoe", "--seed", "1")
    assert said.code == 0 and "note: zoe was learned for another model (toy-ffffffff)" in said.err
    assert recipe(desk.folder / "zoe-1.png").identities == ()


def test_what_does_not_fit_is_said(desk: Desk) -> None:
    toy_bundle(desk.library)
    said = desk("gen", "of chess " * 60 + "zebra", "--seed", "1")
    assert said.code == 0 and "left out: " in said.err and "zebra" in said.err


def test_picture_k_has_seed_k_and_equals_the_single_one(desk: Desk) -> None:
    toy_bundle(desk.library)
    said = desk("gen", "beach", "-n", "3", "--seed", "5")
    assert said.lines == ["beach-5.png", "beach-6.png", "beach-7.png"]
    desk("gen", "beach", "--seed", "6", "-o", "six.png")
    with Image.open("beach-6.png") as one, Image.open("six.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_seed_nobody_chose_is_told(desk: Desk) -> None:
    toy_bundle(desk.library)
    said = desk("gen", "beach", "--json")
    (picture,) = said.document["pictures"]
    assert f"seed {picture['request']['seed']}" in said.err and Path(picture["path"]).is_file()


def test_every_dial_is_in_the_recipe(desk: Desk) -> None:
    toy_bundle(desk.library)
    words = "--steps 7 --cfg 3.5 --sampler euler --neg fog --size 40x48 --scale 2 --seed 3 -o dir/".split()
    (path,) = desk("gen", "beach", *words).lines
    request, record = read_request(desk.folder / path)
    assert (request.steps, request.guidance, request.sampler, request.negative) == (7, 3.5, "euler", "fog")
    assert (request.width, request.height, request.seed, record["scale"]) == (40, 48, 3, 2)
    with Image.open(path) as picture:
        assert picture.size == (80, 96)


def test_pictures_are_enlarged_as_the_model_likes_it(desk: Desk) -> None:
    toy_bundle(desk.library)
    desk("gen", "beach", "-o", "beach.png")
    with Image.open("beach.png") as picture:
        assert picture.size == (128, 128)


def test_no_metadata_means_none(desk: Desk) -> None:
    toy_bundle(desk.library)
    desk("gen", "beach", "-o", "bare.png", "--no-metadata")
    with Image.open("bare.png") as picture:
        picture.load()
        assert not picture.info
    refused(desk("regen", "bare.png"), 3, "no recipe")


def test_pictures_replace_nothing_unasked(desk: Desk) -> None:
    toy_bundle(desk.library)
    Path("mine.png").write_text("mine")
    Path("beach-1.png").write_text("mine")
    refused(desk("gen", "beach", "-o", "mine.png"), 2, "mine.png exists", "--force")
    assert desk("gen", "beach", "--seed", "1").lines == ["beach-1-2.png"]
    Path("many-8.png").write_text("mine")
    refused(desk("gen", "beach", "--seed", "7", "-n", "2", "-o", "many.png"), 2, "many-8.png exists")
    assert not Path("many-7.png").exists() and Path("mine.png").read_text() == "mine"
    assert desk("gen", "beach", "-o", "mine.png", "--force").lines == ["mine.png"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--steps", "5000"), "5000 steps"),
        (("--cfg", "-1"), "guidance -1"),
        (("--cfg", "nan"), "guidance nan"),
        (("--sampler", "magic"), "magic"),
        (("--size", "33x64"), "33x64"),
        (("--scale", "99"), "99"),
    ],
)
def test_what_the_model_cannot_do_is_code_2(desk: Desk, words: tuple[str, ...], problem: str) -> None:
    toy_bundle(desk.library)
    refused(desk("gen", "beach", *words), 2, problem)


def test_a_full_disk_is_code_6_and_leaves_no_half_picture(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_bundle(desk.library)

    def refuse(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    refused(desk("gen", "beach", "-o", "beach.png"), 6, "beach.png", "disk is full")
    assert not list(desk.folder.iterdir())


def test_cuda_without_cuda_is_code_6(desk: Desk) -> None:
    toy_bundle(desk.library)
    refused(desk("gen", "beach", "--device", "cuda"), 6, "")


def test_a_damaged_bundle_is_code_5_and_named(desk: Desk) -> None:
    bundle = toy_bundle(desk.library)
    (bundle.path / "step.onnx").unlink()
    refused(desk("gen", "beach"), 5, "step.onnx", "celebctl export")


def test_a_picture_goes_down_a_pipe_whole(desk: Desk) -> None:
    toy_bundle(desk.library)
    words = [sys.executable, "-m", "celebctl", "gen", "beach", "--seed", "1", "-o", "-"]
    done = subprocess.run(words, capture_output=True, check=True, env={**os.environ})
    desk("gen", "beach", "--seed", "1", "-o", "beach.png")
    assert done.stdout.startswith(b"\x89PNG") and done.stdout.endswith(b"IEND\xaeB`\x82")
    with Image.open("beach.png") as file:
        Path("piped.png").write_bytes(done.stdout)
        with Image.open("piped.png") as piped:
            assert file.tobytes() == piped.tobytes()


def test_gen_never_loads_torch(desk: Desk) -> None:
    desk.know("alice")
    toy_bundle(desk.library)
    code = (
        "import sys; from celebctl.cli import main\n"
        "assert main(['gen', 'alice', '--seed', '1']) == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'onnx', 'rich.progress'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# regen


def test_regen_draws_the_same_pixels(desk: Desk) -> None:
    desk.know("alice")
    toy_bundle(desk.library)
    (path,) = desk("gen", "alice", "--seed", "5", "--sampler", "euler_a", "--scale", "3").lines
    said = desk("regen", path)
    assert said.lines == ["alice-5-regen.png"] and "the same, to the last pixel" in said.err
    assert desk("regen", path, "--json").document["identical"] is True
    assert recipe(desk.folder / "alice-5-regen.png") == recipe(desk.folder / path)


def test_regen_says_when_somebody_has_changed(desk: Desk) -> None:
    desk.know("alice")
    toy_bundle(desk.library)
    desk("gen", "alice", "-o", "then.png")
    desk.library.save(make_identity("alice", 50), overwrite=True)
    desk("gen", "alice", "-o", "now.png")
    said = desk("regen", "then.png", "--json")
    assert said.code == 0 and said.document["identical"] is False
    assert "alice is not who alice was" in said.err and "changed since: the people" in said.err


def test_regen_finds_those_who_moved_out(desk: Desk) -> None:
    desk.know("alice")
    toy_bundle(desk.library)
    desk("gen", "alice", "-o", "then.png")
    desk.bundle().remove("alice")
    assert desk("regen", "then.png", "--json").document["identical"] is True
    desk("forget", "alice")
    refused(desk("regen", "then.png"), 4, "alice")


def test_regen_needs_a_picture_of_ours_and_a_bundle(desk: Desk) -> None:
    refused(desk("regen", "nowhere.png"), 4, "nowhere.png")
    refused(desk("regen", desk.photo()), 3, "no recipe")
    bundle = toy_bundle(Library(desk.folder / "elsewhere"))
    desk("gen", "beach", "-o", "beach.png", "--bundle", bundle.path)
    refused(desk("regen", "beach.png"), 4, "no bundle of toy", "celebctl export --model toy")
    assert desk("regen", "beach.png", "--bundle", bundle.path).code == 0


# People.


def test_list_and_show(desk: Desk) -> None:
    desk.know("bob", "alice")
    assert desk("list").lines == ["alice", "bob"]
    assert [person["name"] for person in desk("list", "--json").document["people"]] == ["alice", "bob"]
    facts = desk("show", "Alice", "--json").document
    assert facts["name"] == "alice" and facts["coefficients"] == 10 and facts["provenance"] == {"preset": "clean"}
    assert "provenance.preset: clean" in desk("show", "alice").lines


def test_an_empty_list_is_no_error(desk: Desk) -> None:
    said = desk("list")
    assert said.code == 0 and not said.out and "celebctl learn" in said.err
    assert desk("list", "--json").document == {"people": []}


def test_unknown_people_are_code_4_everywhere(desk: Desk) -> None:
    desk.know("alice")
    for words in (("show", "alcie"), ("forget", "alcie"), ("rename", "alcie", "bob")):
        refused(desk(*words), 4, "alcie", "did you mean alice")
    assert desk.library.names() == ["alice"]


def test_forget_is_all_or_nothing_and_empties_bundles(desk: Desk) -> None:
    desk.know("alice", "bob")
    toy_bundle(desk.library, make_identity("alice", 1))
    refused(desk("forget", "alice", "carol"), 4, "carol")
    assert desk.library.names() == ["alice", "bob"] and desk.bundle().names == ("alice",)
    assert desk("forget", "alice", "bob").code == 0
    assert not desk.library.names() and not desk.bundle().names
    desk.bundle().verify("full")


def test_rename_reaches_the_bundle(desk: Desk) -> None:
    desk.know("alice")
    toy_bundle(desk.library, make_identity("alice", 1))
    refused(desk("rename", "alice", "and"), 2, "'and'")
    assert desk("rename", "alice", "carol").code == 0
    assert desk.library.names() == ["carol"] and desk.bundle().names == ("carol",)


def test_models_of_the_same_name_do_not_mix(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders called alike are two models, and a bundle remembers which of them it was made of."""
    for parent in ("one", "two"):
        (desk.folder / parent / MODEL).mkdir(parents=True)
    assert desk("gen", "beach", "--seed", "1", "--model", "one/toy").code == 0
    assert desk("gen", "beach", "--seed", "2", "--model", "one/toy").code == 0
    assert len(desk.stage.calls) == 1
    from celebctl.cli.bundles import find_bundle

    assert find_bundle(desk.library, str(desk.folder / "one" / "toy")) is not None
    assert find_bundle(desk.library, "two/toy") is None
