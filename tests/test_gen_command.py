"""`celebctl export`, `gen` and `regen`, on the toy bundle."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, recipe, refused, toy_bundle
from PIL import Image

from celebctl.cli.options import parse_size
from celebctl.library import Library
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import SetupError, UsageError
from celebctl_runtime.files import atomic_write
from celebctl_runtime.picture import read_request

# export


def test_export_includes_all_people_or_those_named(console: CommandLine) -> None:
    console.add_people("alice", "bob", "carol")
    result = console("export")
    assert result.lines == [str(console.library.bundles()[0])]
    assert console.bundle().names == ("alice", "bob", "carol") and 'celebctl gen "alice and bob' in result.err
    result = console("export", "bob", "--out", "bundle", "--json")
    assert result.document["people"] == ["bob"] and Bundle.open(console.folder / "bundle").names == ("bob",)
    refused(console("export", "bbo", "--out", "other"), 4, "bbo", "did you mean bob")


def test_people_are_added_and_removed_without_an_export(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    refused(console("export", "--add", "alice"), 4, "no bundle", "celebctl export")
    toy_bundle(console.library, make_identity("carol", 9))
    result = console("export", "--add", "alice", "--add", "bob", "--remove", "carol", "--json")
    assert result.document["people"] == ["alice", "bob"] and not console.installation.calls
    refused(console("export", "--remove", "carol"), 4, "carol", "alice and bob")
    assert console.bundle().names == ("alice", "bob")


# gen


def test_gen_names_the_image_after_prompt_and_seed(console: CommandLine) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library)
    result = console("gen", "Alice and Bob, playing chess!", "--seed", "4")
    assert result.lines == ["alice-and-bob-playing-chess-4.png"], result.err
    assert recipe(console.folder / result.lines[0]).identities == ("alice", "bob")
    assert "alice and bob;" in result.err and "draw it again: celebctl regen" in result.err


def test_gen_reads_weights_and_wildcards(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    console.add_people("alice", "bob")
    toy_bundle(console.library)
    (console.folder / "w").mkdir()
    (console.folder / "w" / "pose.txt").write_text("sitting\n")
    prompt = "(alice:1.3) and [bob|alice] __pose__ {x|x}"
    result = console("gen", prompt, "--seed", "3", "--wildcards", "w", "-o", "a.png")
    assert result.code == 0, result.err
    request = recipe(console.folder / "a.png")
    assert (request.prompt, request.template) == ("(alice:1.3) and [bob|alice] sitting x", prompt)
    assert request.syntax == "weighted" and request.identities == ("alice", "bob")
    assert console("regen", "a.png", "--json").document["identical"] is True
    assert console("gen", prompt, "--plain-prompt", "-o", "b.png").code == 0
    plain = recipe(console.folder / "b.png")
    assert (plain.prompt, plain.template, plain.syntax) == (prompt, "", "plain")
    monkeypatch.setenv("CELEBCTL_WILDCARDS", "w")
    assert console("gen", "__pose__", "--explain", "--json").document["request"]["prompt"] == "sitting"


def test_gen_explains_and_draws_nothing(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    words = ("gen", "(alice:1.3) [of:2] {a|b}", "--seed", "1", "--steps", "5", "--neg", "of " * 80, "--explain")
    result = console(*words)
    assert result.code == 0 and not list(console.folder.iterdir())
    assert "alice" in result.out and "1.3" in result.out and "steps 1-2 of 5" in result.out and "{a|b}" in result.out
    document = console(*words, "--json").document
    assert document["people"] == ["alice"] and [part["steps"] for part in document["parts"]] == [[[1, 2]], [[3, 5]]]
    assert document["parts"][0]["prompt"]["pieces"][0] == {
        "text": "alice", "weight": 1.3, "person": "alice", "section": 0,
    }  # fmt: skip
    assert document["parts"][0]["negative"]["dropped_text"] == "of of of of of"  # the toy's graph has one window
    assert document["choices"][0]["wildcard"] == "{a|b}"


def test_bad_prompts_are_refused_before_anything_is_drawn(console: CommandLine) -> None:
    toy_bundle(console.library)
    refused(console("gen", "(x:1.2.3)"), 2, "1.2.3", "--plain-prompt")
    refused(console("gen", "(x:900)"), 2, "900", "--plain-prompt")
    refused(console("gen", "(" * 101), 2, "brackets", "--plain-prompt")
    refused(console("gen", "__../x__"), 2, "../x", "--plain-prompt")
    refused(console("gen", "__pose__"), 4, "pose.txt", "--wildcards")
    assert not list(console.folder.iterdir())


def test_gen_makes_a_bundle_when_there_is_none(console: CommandLine) -> None:
    console.add_people("alice")
    result = console("gen", "alice", "--seed", "1")
    assert result.lines == ["alice-1.png"] and "no bundle of toy yet" in result.err
    assert console("gen", "alice", "--seed", "2").code == 0 and len(console.installation.calls) == 1


def test_gen_adds_the_people_of_the_prompt_to_the_bundle(console: CommandLine) -> None:
    """Only the people of the prompt: a bundle has rows for some, a library has thousands."""
    toy_bundle(console.library, make_identity("alice", 1))
    console.add_people("alice", "bob", "carol")
    assert "added to the bundle: bob" in console("gen", "alice and bob").err
    assert console.bundle().names == ("alice", "bob")
    console.library.save(make_identity("alice", 77), overwrite=True)
    console("gen", "<alice>")
    assert console.bundle().manifest.identities["alice"].digest == make_identity("alice", 77).digest


def test_a_given_bundle_is_left_as_it_is(console: CommandLine) -> None:
    console.add_people("alice")
    bundle = toy_bundle(Library(console.folder / "elsewhere"))
    before = (bundle.path / "manifest.json").read_bytes()
    assert console("gen", "alice", "--bundle", bundle.path).code == 0
    assert (bundle.path / "manifest.json").read_bytes() == before
    refused(console("gen", "alice", "--bundle", "nowhere"), 4, "nowhere")


def test_an_unknown_name_in_brackets_is_code_4_with_a_suggestion(console: CommandLine) -> None:
    console.add_people("carol")
    toy_bundle(console.library)
    refused(console("gen", "<carl> on the beach"), 4, "<carl>", "carol")
    assert not list(console.folder.glob("*.png"))


def test_people_of_another_model_are_ordinary_words_with_a_warning(console: CommandLine) -> None:
    toy_bundle(console.library)
    console.library.save(make_identity("zoe", table_hash="f" * 64))
    result = console("gen", "zoe", "--seed", "1")
    assert result.code == 0 and "note: zoe was learned for another model (toy-ffffffff)" in result.err
    assert recipe(console.folder / "zoe-1.png").identities == ()


def test_text_that_does_not_fit_is_reported(console: CommandLine) -> None:
    toy_bundle(console.library)
    result = console("gen", "of chess " * 60 + "zebra", "--seed", "1")
    assert result.code == 0 and "left out: " in result.err and "zebra" in result.err


def test_picture_k_has_seed_k_and_equals_the_single_one(console: CommandLine) -> None:
    toy_bundle(console.library)
    result = console("gen", "beach", "-n", "3", "--seed", "5")
    assert result.lines == ["beach-5.png", "beach-6.png", "beach-7.png"]
    console("gen", "beach", "--seed", "6", "-o", "six.png")
    with Image.open("beach-6.png") as one, Image.open("six.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_random_seed_is_reported(console: CommandLine) -> None:
    toy_bundle(console.library)
    result = console("gen", "beach", "--json")
    (picture,) = result.document["images"]
    assert f"seed {picture['request']['seed']}" in result.err and Path(picture["path"]).is_file()


def test_every_option_is_in_the_recipe(console: CommandLine) -> None:
    toy_bundle(console.library)
    words = "--steps 7 --cfg 3.5 --sampler euler --neg fog --size 40x48 --scale 2 --seed 3 -o dir/".split()
    (path,) = console("gen", "beach", *words).lines
    request, record = read_request(console.folder / path)
    assert (request.steps, request.guidance, request.sampler, request.negative) == (7, 3.5, "euler", "fog")
    assert (request.width, request.height, request.seed, record["scale"]) == (40, 48, 3, 2)
    with Image.open(path) as picture:
        assert picture.size == (80, 96)


def test_images_are_enlarged_by_the_model_scale(console: CommandLine) -> None:
    toy_bundle(console.library)
    console("gen", "beach", "-o", "beach.png")
    with Image.open("beach.png") as picture:
        assert picture.size == (128, 128)


def test_no_metadata_means_none(console: CommandLine) -> None:
    toy_bundle(console.library)
    console("gen", "beach", "-o", "bare.png", "--no-metadata")
    with Image.open("bare.png") as picture:
        picture.load()
        assert not picture.info
    refused(console("regen", "bare.png"), 3, "no recipe")


def test_a_size_of_one_number_is_a_square() -> None:
    read = [parse_size(text) for text in ("512", "512x768", "512×768", None)]
    assert read == [(512, 512), (512, 768), (512, 768), (0, 0)]
    for wrong in ("x", "512x", "x512", "0", "-64", "5.5", "1x2x3", ""):
        with pytest.raises(UsageError, match="--size"):
            parse_size(wrong)


def test_images_overwrite_only_with_force(console: CommandLine) -> None:
    toy_bundle(console.library)
    Path("mine.png").write_text("mine")
    Path("beach-1.png").write_text("mine")
    refused(console("gen", "beach", "-o", "mine.png"), 2, "mine.png exists", "--force")
    assert console("gen", "beach", "--seed", "1").lines == ["beach-1-2.png"]
    Path("many-8.png").write_text("mine")
    refused(console("gen", "beach", "--seed", "7", "-n", "2", "-o", "many.png"), 2, "many-8.png exists")
    assert not Path("many-7.png").exists() and Path("mine.png").read_text() == "mine"
    assert console("gen", "beach", "-o", "mine.png", "--force").lines == ["mine.png"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--steps", "5000"), "steps 5000"),
        (("--cfg", "-1"), "guidance -1"),
        (("--cfg", "nan"), "guidance nan"),
        (("--sampler", "magic"), "magic"),
        (("--size", "33x64"), "33x64"),
        (("--scale", "99"), "99"),
    ],
)
def test_invalid_values_are_code_2(console: CommandLine, words: tuple[str, ...], problem: str) -> None:
    toy_bundle(console.library)
    refused(console("gen", "beach", *words), 2, problem)


def test_a_full_disk_is_code_6_and_leaves_no_half_picture(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_bundle(console.library)

    def refuse(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    refused(console("gen", "beach", "-o", "beach.png"), 6, "beach.png", "disk is full")
    assert not list(console.folder.iterdir())


def test_a_library_that_is_read_only_loses_no_image(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes, **options: bool) -> None:
        if path.name == "unsigned.noted":
            raise SetupError(f"{path} cannot be written", reason="not_writable")
        atomic_write(path, content, **options)

    toy_bundle(console.library)
    monkeypatch.setenv("CELEBCTL_CREDENTIALS", "auto")
    monkeypatch.setattr("celebctl.marks.can_sign", lambda: False)
    monkeypatch.setattr("celebctl_runtime.files.atomic_write", fail)
    result = console("gen", "beach", "-o", "a.png")
    assert (result.code, Path("a.png").is_file()) == (0, True) and "without content credentials" in result.err


def test_cuda_without_cuda_is_code_6(console: CommandLine) -> None:
    toy_bundle(console.library)
    refused(console("gen", "beach", "--device", "cuda"), 6, "")
    refused(console("gen", "beach", "--device", "cuda:1"), 6, "")
    refused(console("gen", "beach", "--device", "cuda:x"), 2, "cuda:x", "cuda:1")


def test_a_damaged_bundle_is_code_5_and_named(console: CommandLine) -> None:
    bundle = toy_bundle(console.library)
    (bundle.path / "step.onnx").unlink()
    refused(console("gen", "beach"), 5, "step.onnx", "celebctl export")


def test_stdout_gets_the_whole_image(console: CommandLine) -> None:
    toy_bundle(console.library)
    words = [sys.executable, "-m", "celebctl", "gen", "beach", "--seed", "1", "-o", "-"]
    done = subprocess.run(words, capture_output=True, check=True, env={**os.environ})
    console("gen", "beach", "--seed", "1", "-o", "beach.png")
    assert done.stdout.startswith(b"\x89PNG") and done.stdout.endswith(b"IEND\xaeB`\x82")
    with Image.open("beach.png") as file:
        Path("piped.png").write_bytes(done.stdout)
        with Image.open("piped.png") as piped:
            assert file.tobytes() == piped.tobytes()


def test_gen_never_loads_torch(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    code = (
        "import sys; from celebctl.cli import main\n"
        "assert main(['gen', 'alice', '--seed', '1']) == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'onnx', 'rich.progress'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# regen


def test_regen_draws_the_same_pixels(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    (path,) = console("gen", "alice", "--seed", "5", "--sampler", "euler_a", "--scale", "3").lines
    result = console("regen", path)
    assert result.lines == ["alice-5-regen.png"] and "identical" in result.err
    assert console("regen", path, "--json").document["identical"] is True
    assert recipe(console.folder / "alice-5-regen.png") == recipe(console.folder / path)


def test_regen_reports_changed_people(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    console("gen", "alice", "-o", "then.png")
    console.library.save(make_identity("alice", 50), overwrite=True)
    console("gen", "alice", "-o", "now.png")
    result = console("regen", "then.png", "--json")
    assert result.code == 0 and result.document["identical"] is False
    assert "alice has changed" in result.err and "changed since: people" in result.err


def test_regen_adds_removed_people_again(console: CommandLine) -> None:
    console.add_people("alice")
    toy_bundle(console.library)
    console("gen", "alice", "-o", "then.png")
    console.bundle().remove("alice")
    assert console("regen", "then.png", "--json").document["identical"] is True
    console("rm", "alice")
    refused(console("regen", "then.png"), 4, "alice")


def test_regen_needs_a_picture_of_ours_and_a_bundle(console: CommandLine) -> None:
    refused(console("regen", "nowhere.png"), 4, "nowhere.png")
    refused(console("regen", console.photo()), 3, "no recipe")
    bundle = toy_bundle(Library(console.folder / "elsewhere"))
    console("gen", "beach", "-o", "beach.png", "--bundle", bundle.path)
    refused(console("regen", "beach.png"), 4, "no bundle of toy", "celebctl export --model toy")
    assert console("regen", "beach.png", "--bundle", bundle.path).code == 0
