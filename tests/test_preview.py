"""Previews while drawing: the map from latents to colours, the callback, terminals, files, and Ctrl-C."""

import base64
import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_fakes import make_identity
from console_fakes import CommandLine, refused, toy_bundle
from PIL import Image

from celebctl.cli.console import CliConsole
from celebctl.cli.continuing import continued
from celebctl.cli.preview import ROWS, FilePreview, TerminalPreview
from celebctl.pipeline import Pipeline
from celebctl.terminal_images import iterm2, kitty, kitty_delete, sixel, terminal_protocol
from celebctl_runtime.backends.base import StepProgress
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.preview import Preview, previews
from celebctl_runtime.progress import Progress

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

MATRIX = [[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 1.0, 0, 0]]  # as the decoder of the toy bundle, without tanh


def with_map(bundle: Bundle, matrix: Any = MATRIX) -> Bundle:
    """The bundle with a map from latents to colours in its manifest."""
    path = bundle.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_rgb": matrix}))
    return Bundle.open(bundle.path)


def noise_image(width: int, height: int) -> Image.Image:
    """Few colours, in no order, so that runs, bands and colours all occur."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 255], [255, 255, 255]], np.uint8)
    chosen = np.random.default_rng(0).integers(0, 4, (height, width // 2)).repeat(2, 1)
    return Image.fromarray(colours[chosen])


# The map.


def test_a_damaged_map_is_refused_and_a_missing_one_is_not(console: CommandLine) -> None:
    bundle = toy_bundle(console.library)
    assert bundle.manifest.latent_rgb == ()
    assert with_map(bundle).manifest.latent_rgb == tuple(map(tuple, MATRIX))
    for wrong in (
        [[1.0] * 5] * 2,
        [[1.0] * 4] * 3,
        [[1.0] * 5] * 2 + [[1.0] * 4],
        [["x"] * 5] * 3,
        3,
        [[1e999] * 5] * 3,
    ):
        with pytest.raises(IntegrityError):
            with_map(bundle, wrong)


def test_export_finds_the_map_of_a_decoder_that_is_linear(tiny_parts: "DiffusionParts") -> None:
    """Random decoders, as tests have them, are far from linear; for mini's see benchmarks/preview.py."""
    import torch

    from celebctl_export.latent_rgb import fit_latent_rgb

    weights = np.random.default_rng(0).normal(size=(3, 5)) / 20

    class LinearDecoder(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")
        config = SimpleNamespace(scaling_factor=0.5, shift_factor=0.25, force_upcast=False, latent_channels=4)

        def decode(self, latent: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            assert not return_dict
            matrix = torch.tensor(weights.tolist())
            clean = (latent - 0.25) * 0.5
            colours = torch.einsum("rc,bchw->brhw", matrix[:, :4], clean) + matrix[:, 4, None, None]
            return (colours.repeat_interleave(4, 2).repeat_interleave(4, 3),)

    found = fit_latent_rgb(replace(tiny_parts, vae=LinearDecoder()))
    assert np.abs(np.array(found) - weights).max() < 1e-4


# The callback.


@pytest.mark.parametrize("layout", ["", "left:alice,right:bob"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
def test_every_step_has_a_preview_and_the_last_is_the_image(console: CommandLine, layout: str, sampler: str) -> None:
    """Also where the engine runs all steps in one call, and where it does not: with a layout."""
    bundle = with_map(toy_bundle(console.library, make_identity("alice", 1), make_identity("bob", 2)))
    pipe = Pipeline(bundle, device="cpu", library=console.library)
    seen: list[np.ndarray] = []

    def show(event: Progress) -> None:
        assert event.preview is not None
        seen.append(event.preview())

    options: dict[str, Any] = {"seed": 3, "steps": 6, "layout": layout, "sampler": sampler}
    drawn = pipe("alice and bob chess", progress=show, **options).images[0]
    assert len(seen) == 6 and all(one.dtype == np.uint8 and one.shape == seen[0].shape for one in seen)
    small = np.asarray(drawn)[::4, ::4].astype(float)  # the toy decoder repeats each element, after tanh
    squashed = np.tanh(seen[-1][0] / 127.5 - 1.0) * 127.5 + 127.5
    inside = (seen[-1][0] > 0) & (seen[-1][0] < 255)
    assert inside.mean() > 0.3 and np.abs(squashed - small)[inside].max() < 6, "ddim ends with a little noise"
    assert not np.array_equal(seen[0], seen[-1])
    assert pipe("alice and bob chess", **options).images[0].tobytes() == drawn.tobytes()


def test_a_bundle_without_a_map_has_no_previews(console: CommandLine) -> None:
    events: list[Progress] = []
    Pipeline(toy_bundle(console.library), device="cpu")("chess", steps=2, progress=events.append)
    assert len(events) == 2 and all(event.preview is None for event in events)


def test_an_engine_that_hides_its_state_has_no_previews(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(with_map(toy_bundle(console.library)), device="cpu")

    def without_state(*event: Any, read_state: object) -> Progress:
        del read_state
        return Progress(*event)

    monkeypatch.setattr("celebctl_runtime.backends.ort.StepProgress", without_state)
    events: list[Progress] = []
    pipe("chess", steps=2, progress=events.append)
    assert [event.step for event in events] == [1, 2] and all(event.preview is None for event in events)
    assert issubclass(StepProgress, Progress)


def test_previews_take_two_percent_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    spent: list[float] = []

    def show(preview: Preview) -> None:
        assert preview.image().size == (2, 1)
        clock[0] += 0.02
        spent.append(clock[0])

    events: list[Progress] = []
    callback = previews(show, events.append)
    for step in range(1, 1001):  # 10 seconds of steps
        clock[0] += 0.01
        callback(Progress("denoising", step, 1000, preview=lambda: np.zeros((2, 1, 1, 3), np.uint8)))
        assert 0.02 * len(spent) <= 0.02 * clock[0] + 0.02 * 0.02 + (0.016 if len(spent) == 1 else 0)
    assert 8 <= len(spent) <= 10 and [event.step for event in events] == list(range(1, 1001))
    callback(Progress("denoising", 1, 1000))  # without a preview
    assert len(events) == 1001


# Terminals.


def test_terminals_are_known_by_their_environment() -> None:
    for environment, protocol in (
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app", "TERM": "xterm-256color"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({}, None),
    ):
        assert terminal_protocol(environment) == protocol, environment


def decoded_png(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB"))


def test_kitty_sequences_hold_the_pixels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text := kitty(image, 20, 10, 7))
    assert "".join(f"\x1b_G{control};{data}\x1b\\" for control, data in parts) == text and len(parts) > 2
    assert all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in parts)
    assert np.array_equal(decoded_png("".join(data for _, data in parts)), np.asarray(image))
    first = dict(pair.split("=") for pair in parts[0][0].split(","))
    assert first == {"a": "T", "f": "100", "c": "20", "r": "10", "C": "1", "q": "2", "i": "7", "m": "1"}
    assert [control.split(",")[-1] for control, _ in parts] == ["m=1"] * (len(parts) - 1) + ["m=0"]
    assert "i=" not in kitty(image, 20, 10) and "i=7" in kitty_delete(7)


def test_iterm2_sequences_hold_the_pixels() -> None:
    image = noise_image(20, 10)
    match = re.fullmatch(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07", iterm2(image, 20, 10))
    assert match is not None
    values = dict(pair.split("=") for pair in match[1].split(";"))
    assert values["inline"] == "1" and (values["width"], values["height"]) == ("20", "10")
    assert int(values["size"]) == len(base64.b64decode(match[2]))
    assert np.array_equal(decoded_png(match[2]), np.asarray(image))


def decoded_sixel(text: str) -> np.ndarray:
    """The pixels of a sixel image, -1 where none was set."""
    match = re.fullmatch(r'\x1bP0;1;0q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert match is not None
    width, height, body = int(match[1]), int(match[2]), match[3]
    pixels, colours = np.full((-(-height // 6) * 6, width, 3), -1), dict[int, list[int]]()
    x, y, colour = 0, 0, 0
    for token in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([$-])|([?-~])", body):
        if token[1]:
            colours[int(token[1])] = [int(token[part]) for part in (2, 3, 4)]
        elif token[5]:
            colour = int(token[5])
        elif token[8]:
            x, y = 0, y + 6 * (token[8] == "-")
        else:
            count, bits = int(token[6] or 1), ord(token[7] or token[9]) - 63
            for bit in (bit for bit in range(6) if bits >> bit & 1):
                pixels[y + bit, x : x + count] = colours[colour]
            x += count
    assert (pixels[height:] == -1).all()
    return pixels[:height]


@pytest.mark.parametrize("size", [(20, 10), (2, 1), (64, 60), (30, 13)])
def test_sixel_sequences_hold_the_pixels(size: tuple[int, int]) -> None:
    image = noise_image(*size)
    assert np.array_equal(np.round(decoded_sixel(sixel(image)) * 2.55), np.asarray(image))


def test_sixel_has_few_colours_that_are_near(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 40)[None, :, None] * np.array([1, 0.5, 0.2]) + np.zeros((30, 1, 1))
    shown = decoded_sixel(sixel(Image.fromarray(ramp.astype(np.uint8)))) * 2.55
    assert np.abs(shown - ramp).max() < 8


# The command.


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Previews of every step: the toy model draws in less time than a preview takes."""
    monkeypatch.setattr("celebctl_runtime.preview.SHARE", 1e9)
    monkeypatch.setattr(previews, "__defaults__", (*(previews.__defaults__ or ())[:1], 0.0))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """stderr passes for a terminal."""
    monkeypatch.setattr(CliConsole, "interactive", property(lambda self: not self.quiet))


@pytest.mark.usefixtures("slow", "terminal")
@pytest.mark.parametrize(
    ("protocol", "mark"), [("kitty", "\x1b_Ga=T"), ("iterm2", "\x1b]1337;File="), ("sixel", "\x1bP0;1;0q")]
)
def test_previews_in_a_terminal_and_the_finished_image(console: CommandLine, protocol: str, mark: str) -> None:
    with_map(toy_bundle(console.library))
    result = console("gen", "beach", "--steps", "5", "--seed", "1", "--preview", protocol)
    assert result.code == 0 and result.lines == ["beach-1.png"] and "\x1b" not in result.out
    assert result.err.count(mark) == 4 + 1, "of the first step nothing is known about the time"
    assert result.err.count(f"\x1b[{ROWS}A") == 4 + 1 + 1 and result.err.count(f"\x1b[{ROWS}B") == 4 + 1
    assert result.err.count("\x1b[0J") == 1 and result.err.count("\n" * ROWS) == 2
    assert "drawing  5/5" in result.err


@pytest.mark.usefixtures("slow")
def test_no_previews_without_a_terminal_that_shows_images(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_map(toy_bundle(console.library))
    monkeypatch.setenv("TERM", "xterm-kitty")
    for words in (("--preview", "kitty"), ("--preview", "auto"), ()):
        assert "\x1b" not in console("gen", "beach", "--steps", "3", *words).err, "stderr is no terminal"
    monkeypatch.setattr(CliConsole, "interactive", property(lambda self: not self.quiet))
    assert "\x1b_G" in console("gen", "beach", "--steps", "3", "--preview", "auto").err
    assert "\x1b_G" not in console("gen", "beach", "--steps", "3").err, "off unless asked for"
    assert "\x1b_G" not in console("gen", "beach", "--steps", "3", "--preview", "kitty", "--quiet").err
    monkeypatch.setenv("CELEBCTL_PREVIEW", "auto")
    assert "\x1b_G" in console("gen", "beach", "--steps", "3").err
    monkeypatch.setenv("TMUX", "1")
    assert "\x1b_G" not in console("gen", "beach", "--steps", "3").err


@pytest.mark.usefixtures("slow")
def test_a_file_grows_and_ends_as_the_image(console: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with_map(toy_bundle(console.library))
    sizes: list[tuple[int, int]] = []
    write: Callable[..., None] = FilePreview._write  # pyright: ignore[reportPrivateUsage]

    def watched(self: FilePreview, image: Image.Image, height: int) -> None:
        write(self, image, height)
        with Image.open("now.png") as file:
            file.load()
            sizes.append(file.size)

    monkeypatch.setattr(FilePreview, "_write", watched)
    words = ("gen", "beach", "--steps", "4", "--seed", "1", "--preview", "now.png")
    assert console(*words).code == 0
    assert sizes == [(128, 128)] * 4 and sorted(path.name for path in Path().iterdir()) == ["beach-1.png", "now.png"]
    with Image.open("now.png") as file, Image.open("beach-1.png") as drawn:
        assert np.abs(np.asarray(file, int) - np.asarray(drawn.convert("RGB").resize((128, 128)), int)).mean() < 8
    assert console(*words).code == 0, "a preview may be replaced"
    Path("mine.png").write_bytes(b"mine")
    refused(console("gen", "beach", "--preview", "mine.png"), 2, "mine.png exists", "--force")
    assert Path("mine.png").read_bytes() == b"mine"
    refused(console("gen", "beach", "--preview", "magic"), 2, "magic", "sixel")
    refused(console("gen", "beach", "--preview", "mine.png/x.png"), 6, "x.png")


# Ctrl-C.


@pytest.mark.usefixtures("slow")
def test_ctrl_c_keeps_what_is_drawn_and_says_how_to_go_on(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_map(toy_bundle(console.library))
    finished = FilePreview.finished
    count = 0

    def interrupt(self: FilePreview, image: Image.Image) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        finished(self, image)

    monkeypatch.setattr(FilePreview, "finished", interrupt)
    words = ("gen", "beach", "--steps", "3", "-n", "5", "--seed", "7", "--preview", "now.png")
    result = console(*words)
    assert result.code == 130 and "Traceback" not in result.err and result.lines == ["beach-7.png", "beach-8.png"]
    again = "celebctl gen beach --steps 3 --preview now.png --seed 9 --count 3"
    assert f"to go on: {again}" in result.err
    assert sorted(path.name for path in Path().iterdir()) == ["beach-7.png", "beach-8.png", "now.png"]
    assert console(*again.split()[1:]).lines == ["beach-9.png", "beach-10.png", "beach-11.png"]


def test_ctrl_c_during_a_step_leaves_the_preview_on_the_terminal(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), TerminalPreview(CliConsole(), "kitty").track("drawing") as progress:
        for step in range(3):
            monkeypatch.setattr(time, "perf_counter", lambda step=step: 10.0 * step)
            progress(Progress("denoising", step, 3, preview=lambda: np.zeros((1, 2, 2, 3), np.uint8)))
        raise KeyboardInterrupt
    shown = capsys.readouterr().err
    assert "\x1b_Ga=T" in shown and "\x1b[0J" not in shown and "a=d" not in shown and shown.endswith("\n")


def test_the_command_to_go_on_has_one_seed() -> None:
    for argv, words in (
        (["gen", "alice"], ["gen", "alice", "--seed", "4"]),
        (["gen", "alice", "-s", "1", "-n1"], ["gen", "alice", "--seed", "4"]),
        (["gen", "--seed=1", "--", "-s 3"], ["gen", "--seed", "4", "--", "-s 3"]),
    ):
        assert continued(argv, 4, None) == ["celebctl", *words]
