"""Options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

# A copy of celebctl_runtime.request.SAMPLERS, whose import would load numpy for every --help; a test compares them.
SAMPLERS = "ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, lcm"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Model: a known name, diffusers folder, checkpoint file or Hub id.", show_default="mini"
    ),
]
Prediction = Annotated[
    str | None,
    typer.Option(
        "--prediction",
        help="What the checkpoint's UNet predicts: epsilon or v_prediction.",
        show_default="as its files state",
    ),
]
ZeroSnr = Annotated[
    bool | None,
    typer.Option(
        "--zero-snr/--no-zero-snr",
        help="Whether the checkpoint was trained with zero terminal SNR.",
        show_default="as its files state",
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        "--clip-skip",
        help="Which layer of the text encoders is read, counted from the last, 1, as in AUTOMATIC1111 and ComfyUI.",
        show_default="1; for SDXL 2",
    ),
]
Vae = Annotated[
    Path | None,
    typer.Option("--vae", help="Use this autoencoder: a diffusers folder or a file.", show_default="the checkpoint's"),
]
BundleDir = Annotated[
    Path | None, typer.Option("--bundle", help="Use this bundle instead of the one in the library.", metavar="DIR")
]
Seed = Annotated[
    int | None, typer.Option("--seed", "-s", help="Random seed; the same seed gives the same result. Default: random.")
]
Steps = Annotated[int | None, typer.Option("--steps", help="Number of steps. Default: the model's or preset's.")]
ImageFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="png, jpeg or webp, for a folder or stdout.",
        metavar="FORMAT",
        show_default="by the suffix of FILE, else png",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option("--quality", help="Of JPEG and WebP: 1 to 100. A WebP with 100 is lossless.", show_default="90"),
]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Store the recipe and content credentials in the image.")
]
Watermark = Annotated[
    bool | None,
    typer.Option(
        "--watermark/--no-watermark", help="An imperceptible watermark in the pixels.", show_default="on, see docs"
    ),
]
Guidance = Annotated[float | None, typer.Option("--guidance", "--cfg", help="Classifier-free guidance scale.")]
Sampler = Annotated[str | None, typer.Option("--sampler", help=SAMPLERS + ".")]
Negative = Annotated[str, typer.Option("--negative", "--neg", help="Negative prompt: what not to draw.")]
MaskBlur = Annotated[
    int | None,
    typer.Option(
        "--mask-blur",
        help="Pixels inside the mask's edge over which the change fades in, 0 to 128.",
        show_default="1/128 of the shorter side",
    ),
]
Scale = Annotated[int | None, typer.Option("--scale", help="Enlarge by this factor.")]
ImageOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="FILE.png, .jpg or .webp, a folder, or - for stdout.",
        show_default="./PROMPT-SEED.png",
    ),
]
PlainPrompt = Annotated[
    bool, typer.Option("--plain-prompt", help="Take brackets, BREAK and wildcards in the prompts as plain text.")
]
Wildcards = Annotated[
    Path | None,
    typer.Option("--wildcards", help="Folder with the files of __name__.", metavar="FOLDER", show_default=False),
]
SafetyCheckerFile = Annotated[
    Path | None,
    typer.Option(
        "--safety-checker",
        help="Write no image that this ONNX classifier scores above the setting safety_threshold, 0.5.",
        metavar="FILE.onnx",
        show_default="none",
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Preview = Annotated[
    str | None,
    typer.Option(
        "--preview",
        help="Show images while they are drawn: auto (in terminals known to show images), kitty, iterm2, sixel,"
        " a FILE.png that is replaced again and again, or off.",
        show_default="off",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, trt, openvino, webgpu, mlx or rtx; cuda:1 and trt:1 are the second GPU.",
        show_default="auto",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads.", show_default="one per physical core")]
Likeness = Annotated[
    str | None,
    typer.Option(
        "--likeness",
        help="How much a person looks like themselves: 0 (the average celebrity) to 1 (as learned), or per person:"
        " alice=0.8,bob=1.",
        metavar="FRACTION",
        show_default="1",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Where each person is: left:alice,right:bob (also top, bottom); boxes as fractions of the image,"
        " alice@0,0,0.5,1 (left, top, right, bottom edge); auto (two people: left and right in prompt order); none.",
        metavar="LAYOUT",
        show_default="the model's: none for mini, else auto",
    ),
]
FaceModels = Annotated[
    str | None,
    typer.Option(
        "--face-models", help="Face models: buffalo_l, antelopev2, yunet_sface, or a folder.", metavar="PACK|DIR"
    ),
]
LowMemory = Annotated[
    bool, typer.Option("--low-memory", help="Use about a third of the memory, slower; for large models.")
]
ForModel = Annotated[
    str | None,
    typer.Option("--for-model", help="Only people of this model key, as shown by `celebctl list`.", metavar="KEY"),
]
Person = Annotated[str, typer.Argument(help="Name of the person.", metavar="NAME")]
People = Annotated[list[str], typer.Argument(help="Names of people.", metavar="NAME...")]


def parse_size(text: str | None) -> tuple[int, int]:
    """ "WxH" in pixels to (width, height), "N" to a square; (0, 0) for None. Raises UsageError."""
    if text is None:
        return 0, 0
    width, cross, height = text.lower().replace("×", "x").partition("x")
    height = height if cross else width
    if not all(side.isdecimal() and len(side) < 10 and int(side) for side in (width, height)):
        from celebctl_runtime.errors import UsageError

        raise UsageError(
            f"invalid --size {text[:80]!r}", "use WIDTHxHEIGHT, such as --size 512x768, or one side of a square"
        )
    return int(width), int(height)


def positive(number: int | None, option: str) -> int:
    """`number`, or 0 for None. Raises UsageError for a number below 1: the runtime reads 0 as its default."""
    if number is not None and number < 1:
        from celebctl_runtime.errors import UsageError

        raise UsageError(f"{option} {number} is out of range", "use 1 or more")
    return number or 0
