"""Animations as files: GIF, WebP and animated PNG by Pillow, MP4 by PyAV, or a folder of PNG files.

The file carries the recipe of every image: the request and record of the first, as in a PNG of one image, and what the
other requests change. GIF has it as its comment, WebP and animated PNG where files of one image have it, MP4 in the
metadata entry "comment". These files have no watermark and no content credentials; those in a folder can.
"""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from celebctl.animation import Animation
from celebctl_runtime.errors import InvalidInputError, SetupError, UsageError, out_of_range
from celebctl_runtime.files import atomic_write, refuse_existing
from celebctl_runtime.image_files import read_image
from celebctl_runtime.picture import WATERMARKED, Marks, save_image
from celebctl_runtime.prompting.likeness import likeness_to_json
from celebctl_runtime.recipes.carriers import OWN, exif_block, png_info, texts_in
from celebctl_runtime.recipes.reading import MAX_SCALE, SCHEMA, parse_text, recipe_of_document
from celebctl_runtime.strict_json import parse_json

if TYPE_CHECKING:
    from celebctl_runtime.picture import GeneratedImage
    from celebctl_runtime.recipes.recipe import Recipe
    from celebctl_runtime.request import Request

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG", ".png": "PNG", ".mp4": "MP4"}
_PALETTE_SIDE = 64  # pixels: images are reduced to it to choose the colours of a GIF
#: Entries of requests that differ between frames.
_VARYING = ("prompt", "toward", "blend", "identities", "layout", "likeness", "syntax")
_CRF = "18"  # constant rate factor of x264: visually lossless


def check_animation_path(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything is drawn. A path without a suffix is a folder.

    Raises:
        UsageError: The file exists, or no format has its suffix.
        SetupError: PyAV, which writes MP4, is missing.
    """
    suffix = path.suffix.lower()
    if not suffix or path.is_dir():
        if not overwrite and any(path.glob("frame-*.png")):
            raise UsageError(f"{path} has frames already", "choose another folder", reason="file_exists", path=path)
        return
    if suffix not in FORMATS:
        raise UsageError(
            f"{path} has no suffix of an animation", f"use one of {', '.join(FORMATS)}, or a folder", path=path
        )
    refuse_existing(path, overwrite)
    if suffix == ".mp4":
        _import_av()


def save_animation(
    animation: Animation, path: Path, *, scale: int = 1, overwrite: bool = False, marks: Marks = WATERMARKED
) -> list[Path]:
    """Write an animation to one file in the format of its suffix, or to a folder as frame-001.png, frame-002.png, ...

    Args:
        animation: What to write.
        path: A file with a suffix in `FORMATS`, or a folder.
        scale: Enlarge so many times, 1 to 16.
        overwrite: Replace existing files.
        marks: Watermark and content credentials of the files in a folder; animations have neither.

    Returns:
        The files written.

    Raises:
        UsageError: As `check_animation_path`, or `scale` is out of range.
        SetupError: A file cannot be written, or PyAV is missing.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise out_of_range("scale", scale, 1, MAX_SCALE)
    check_animation_path(path, overwrite)
    if not path.suffix or path.is_dir():
        frames = [animation.images[number] for number in animation.order]
        files = [path / f"frame-{number:03}.png" for number in range(1, len(frames) + 1)]
        return [
            save_image(frame, file, scale=scale, overwrite=overwrite, marks=marks)
            for frame, file in zip(frames, files, strict=True)
        ]
    images = [_enlarged(one, scale) for one in animation.images]
    text = json.dumps(_document(animation, scale))
    kind = FORMATS[path.suffix.lower()]

    def write(target: Path) -> None:
        if kind == "MP4":
            _write_mp4(animation, images, text, target)
        else:
            write_frames(
                images, (animation.order, animation.seconds), target, kind, repeats=animation.repeats, recipe=text
            )

    atomic_write(path, write, overwrite=overwrite)
    return [path]


def write_frames(
    images: Sequence[Image.Image],
    frames: tuple[Sequence[int], Sequence[float]],
    path: Path,
    kind: str,
    *,
    repeats: bool = True,
    recipe: str = "",
) -> None:
    """Write RGB images of one size as an animated GIF, WEBP or PNG.

    Args:
        images: The different images.
        frames: For each frame the number of its image, and its seconds.
        path: The file.
        kind: Pillow's name of the format.
        repeats: Whether it repeats without end, or is shown once.
        recipe: ASCII text to store with it.
    """
    texts = {OWN: recipe} if recipe else {}
    options: dict[str, Any] = {"duration": [round(1000 * seconds) for seconds in frames[1]]}
    if repeats or kind != "GIF":  # a GIF that does not mention repetition is shown once
        options["loop"] = 0 if repeats else 1
    if kind == "GIF":
        images = _with_one_palette(images)
        options |= {"comment": recipe.encode("ascii")} if recipe else {}
    elif kind == "WEBP":
        options |= {"quality": 90, "method": 4, "exif": exif_block(texts)}
    else:
        options["pnginfo"] = png_info(texts)
    shown = [images[number] for number in frames[0]]
    shown[0].save(path, kind, save_all=True, append_images=shown[1:], **options)


def read_frame(path: Path, number: int) -> "Recipe":
    """The recipe of a frame of a GIF, WebP or animated PNG that celebctl wrote.

    Args:
        path: The file.
        number: The frame, from 1.

    Raises:
        NotFoundError: When there is no file.
        InvalidInputError: When it is no such file, or has no recipe.
        IntegrityError: When the recipe is damaged or was written by a newer version.
        UsageError: When the animation has no frame of this number.
    """
    recipes = parse_text(_recipe_text(path), path, _recipes)
    if not 1 <= number <= len(recipes):
        raise out_of_range("frame", number, 1, len(recipes))
    return recipes[number - 1]


def _recipes(text: str) -> list["Recipe"]:
    document = cast("dict[str, Any]", parse_json(text))
    changes = cast("list[Mapping[str, Any]]", document["frames"])
    if not changes:
        raise ValueError("it has no frames")
    return [recipe_of_document({**document, "request": {**document["request"], **one}}) for one in changes]


def _document(animation: Animation, scale: int) -> dict[str, Any]:
    """The recipe: of the first frame complete, of every frame what differs from it."""
    first = animation.images[0]
    changes = [_changes(first.request, animation.images[number].request) for number in animation.order]
    record = {**first.record, "identities": _identities(animation), "scale": scale}
    return {"schema": SCHEMA, "request": first.request.to_json(), "record": record, "frames": changes}


def _changes(first: "Request", other: "Request") -> dict[str, Any]:
    pairs = ((name, getattr(first, name), getattr(other, name)) for name in _VARYING)
    different = {name: value for name, old, value in pairs if old != value}
    if different.get("identities") is not None:
        different["identities"] = list(other.identities or ())
    if "likeness" in different:
        different["likeness"] = likeness_to_json(other.likeness)
    return different


def _identities(animation: Animation) -> dict[str, str]:
    digests: dict[str, str] = {}
    for one in animation.images:
        digests |= one.record.get("identities", {})
    return digests


def _enlarged(one: "GeneratedImage", scale: int) -> Image.Image:
    image = one.image
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS) if scale > 1 else image


def _with_one_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The images in 256 colours, the same for all: colours chosen for each alone would flicker.

    An octree keeps rare colours, such as those of the eyes, which median cut loses.
    """
    small = [image.copy() for image in images]
    for image in small:
        image.thumbnail((_PALETTE_SIDE, _PALETTE_SIDE))
    width, height = small[0].size
    sheet = Image.new("RGB", (width, height * len(small)))
    for number, image in enumerate(small):
        sheet.paste(image, (0, number * height))
    palette = sheet.quantize(256, method=Image.Quantize.FASTOCTREE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _write_mp4(animation: Animation, images: Sequence[Image.Image], recipe: str, path: Path) -> None:
    """H.264 in yuv420p, which every player shows; it needs even sides. A longer frame is repeated."""
    av = _import_av()
    rate = Fraction(1 / min(animation.seconds)).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = recipe
        width, height = (side // 2 * 2 for side in images[0].size)
        stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, seconds in zip(animation.order, animation.seconds, strict=True):
            pixels = images[number].crop((0, 0, width, height))
            for _ in range(max(1, round(seconds * rate))):
                container.mux(stream.encode(av.VideoFrame.from_image(pixels)))
        container.mux(stream.encode(None))


def _import_av() -> Any:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SetupError(
            "writing MP4 needs the package av",
            "pip install 'celebctl[video]', or use .gif, .webp or .apng",
            reason="video_missing",
        ) from error
    return cast(Any, av)


def _recipe_text(path: Path) -> str:
    """The document in an animation. Raises as `read_frame`."""
    try:
        file = read_image(path, animated=True)
    except InvalidInputError as error:
        raise _no_recipe(path) from error
    texts = {OWN: file.comment.decode(errors="replace")} if file.format == "GIF" else texts_in(file)
    text = texts.get(OWN, "")
    if '"frames"' not in text:
        raise _no_recipe(path)
    return text


def _no_recipe(path: Path) -> InvalidInputError:
    problem, hint = f"{path} is no animation with a recipe", "use a .gif, .webp or .apng that celebctl wrote"
    return InvalidInputError(problem, hint, reason="no_frames", path=path)
