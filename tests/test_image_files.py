"""Image files become upright RGB images, or an error says why not: photos and init images alike."""

import io
import logging
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_fakes import photo_of
from PIL import Image, PngImagePlugin
from test_project_layout import sources, where

from celebctl.pipeline import make_requests
from celebctl_models.faces.photos import open_photo
from celebctl_runtime.errors import (
    CelebctlError,
    InvalidInputError,
    NotFoundError,
    SetupError,
    UsageError,
)
from celebctl_runtime.image_files import read_image
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.init_image import InitImage


def quadrants() -> Image.Image:
    """Four colours, so that every turn and flip can be told from every other."""
    picture = Image.new("RGB", (8, 4), (200, 0, 0))
    picture.paste((0, 200, 0), (4, 0, 8, 2))
    picture.paste((0, 0, 200), (0, 2, 4, 4))
    picture.paste((200, 200, 0), (4, 2, 8, 4))
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_picture(tmp_path: Path, orientation: int) -> None:
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # the inverse of what a viewer does
    picture = quadrants()
    for turn in turns.get(orientation, []):
        picture = picture.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    assert open_photo(tmp_path / "a.png").tobytes() == quadrants().tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_png_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    else:
        grey = Image.new("RGB", (8, 8), (128, 128, 128))
        picture = grey.quantize(4) if mode == "P" else grey.convert(mode)
    picture.save(tmp_path / "a.png")
    pixels = np.asarray(open_photo(tmp_path / "a.png"))
    assert pixels.shape == (8, 8, 3)
    assert mode == "1" or (np.ptp(pixels) == 0 and abs(int(pixels[0, 0, 0]) - 128) <= 1)


def test_transparency_is_composed_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([9, 9, 9])
    picture.save(tmp_path / "p.png", transparency=0)
    for name in ("a.png", "p.png"):
        assert np.asarray(open_photo(tmp_path / name)).min() == 255


def test_the_alpha_channel_is_upright_and_none_for_opaque_images(tmp_path: Path) -> None:
    half = Image.new("RGBA", (8, 4), (10, 20, 30, 255))
    half.paste((10, 20, 30, 0), (0, 0, 2, 4))  # the left quarter
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    half.save(tmp_path / "a.png", exif=exif)
    half.convert("P").save(tmp_path / "p.png", transparency=0)
    quadrants().convert("RGBA").save(tmp_path / "opaque.png")
    read = read_image(tmp_path / "a.png")
    assert read.alpha is not None and (read.mode, read.alpha.mode) == ("RGBA", "L")
    assert np.asarray(read.alpha)[0].tolist() == [255] * 6 + [0] * 2
    assert np.asarray(read.image)[0, :, 0].tolist() == [10] * 6 + [255] * 2
    assert read_image(tmp_path / "opaque.png").alpha is None and read_image(tmp_path / "p.png").mode == "P"


def test_cmyk_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = np.asarray(open_photo(tmp_path / "a.jpg"))[4, 4].tolist()
    assert red > 200 and green < 60 and blue < 60


def test_colour_profiles_are_followed_and_broken_ones_ignored(tmp_path: Path) -> None:
    from PIL import ImageCms

    lab: Any = ImageCms
    srgb = lab.ImageCmsProfile(lab.createProfile("sRGB")).tobytes()
    picture = Image.new("RGB", (4, 4), (10, 120, 240))
    for name, profile in (("a.png", srgb), ("b.png", b"no profile at all")):
        picture.save(tmp_path / name, icc_profile=profile)
        assert np.abs(np.asarray(open_photo(tmp_path / name), np.int16) - np.asarray(picture)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_read_with_a_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 0, 0), (255, 255, 255))]
    path = tmp_path / "a.bin"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=50)
    assert np.asarray(open_photo(path)).max() < 20
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "a.bin" in caplog.text


def test_metadata_stays_behind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    quadrants().save(tmp_path / "a.jpg", exif=exif, comment=b"home address")
    photo = open_photo(tmp_path / "a.jpg")
    assert not photo.info and not photo.getexif()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


def jpeg_bytes() -> bytes:
    file = io.BytesIO()
    photo_of((1, 1)).save(file, "JPEG")
    return file.getvalue()


DAMAGED, UNSUPPORTED, PIXELS = "damaged_image unsupported_image_format too_many_pixels".split()
#: File -> content and reason.
HOSTILE = {
    "empty.jpg": (b"", "empty_file"),
    "short.jpg": (jpeg_bytes()[:200], DAMAGED),
    "cut.jpg": (jpeg_bytes()[:-600], DAMAGED),
    "bomb.png": (png_claiming(30_000, 30_000), PIXELS),
    "large.png": (png_claiming(12_000, 12_000), PIXELS),
    "text.jpg": (b"these are words, not pixels", UNSUPPORTED),
    "page.pdf": (b"%PDF-1.7\n%...", UNSUPPORTED),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", UNSUPPORTED),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNSUPPORTED),
    "sky.fits": (b"SIMPLE  =                    T".ljust(2880), UNSUPPORTED),
    "noise.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), UNSUPPORTED),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [open_photo, InitImage.read])
def test_other_files_are_refused_by_name_and_reason(tmp_path: Path, name: str, read: Any) -> None:
    content, reason = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        read(tmp_path / name)
    assert name in error.value.problem and error.value.hint and error.value.reason == reason


@pytest.mark.parametrize("kind", ["TGA", "PPM", "JPEG2000", "AVIF", "SGI", "PCX", "ICO"])
def test_formats_that_are_not_on_the_list_are_refused(tmp_path: Path, kind: str) -> None:
    try:
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png", kind)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow writes no {kind}")
    for read in (open_photo, InitImage.read):
        with pytest.raises(InvalidInputError) as error:
            read(tmp_path / "a.png")
        assert error.value.reason == UNSUPPORTED


def test_an_init_image_is_read_as_a_photo_is(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))  # invisible red
    wide = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    for number, image in enumerate((clear, wide, clear.quantize(4))):
        path = tmp_path / f"{number}.png"
        image.save(path)
        assert InitImage.read(path).image.tobytes() == open_photo(path).tobytes()
    (_,), (given,) = make_requests(Request("a"), 1, clear)
    assert np.asarray(given.image).min() == 255


def test_what_a_file_carries_beside_its_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"parameters\0a text", after_idat=True)
    for name in ("a.png", "a.jpg", "a.webp"):
        quadrants().save(tmp_path / name, exif=exif, pnginfo=info)
        read = read_image(tmp_path / name)
        assert b"a description" in read.exif
        assert (read.format, dict(read.text)) == (
            {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name[2:]],
            {"parameters": "a text"} if name == "a.png" else {},
        )


def test_the_main_image_of_a_phones_jpeg_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [quadrants().resize((64, 32)), Image.new("RGB", (64, 32), "white")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.asarray(open_photo(tmp_path / "a.jpg")).min() < 60 and not caplog.records


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InvalidInputError, match="floating"):
        open_photo(tmp_path / "a.tiff")


def test_a_heic_photo_without_its_decoder_hints_at_the_extra(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(SetupError) as error:
        open_photo(tmp_path / "a.heic")
    assert "celebctl[heif]" in error.value.hint


def test_heic_photos_are_read_upright_at_their_main_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heif: Any = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture = quadrants().resize((64, 32), Image.Resampling.NEAREST)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.heic", "a.jpg"):
            picture.save(tmp_path / name, exif=exif.tobytes(), quality=95)
        one, other = (np.asarray(open_photo(tmp_path / name), np.int16) for name in ("a.heic", "a.jpg"))
        assert one.shape == other.shape and np.median(np.abs(one - other)) <= 3
    blank = Image.new("RGB", (64, 32), "white")
    picture.save(tmp_path / "b.heic", save_all=True, append_images=[blank], primary_index=1)
    assert np.asarray(open_photo(tmp_path / "b.heic")).min() > 240 and not caplog.records


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("face.jpg", NotFoundError),
        ("", NotFoundError),
        ("a\0b", NotFoundError),
        ("~nobody-here/face.jpg", NotFoundError),
        ("x" * 5000, NotFoundError),
        ("/dev/null", NotFoundError),
        ("https://example.org/face.jpg", UsageError),
        ("http:/example.org/face.jpg", UsageError),
    ],
)
def test_unreadable_paths_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, problem: type[CelebctlError]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(problem) as error:
        open_photo(path)
    assert error.value.hint


def test_a_missing_photo_suggests_a_file_for_a_sample(tmp_path: Path) -> None:
    for name, sample in (("face.jpg", str(tmp_path / "face.jpg")), ("face.heic", "face.png")):
        with pytest.raises(NotFoundError) as error:
            open_photo(tmp_path / name)
        assert error.value.reason == "no_photo" and str(error.value.values["sample"]) == sample


@pytest.mark.parametrize(("kind", "size"), [(b"zTXt", 3_000_000), (b"iCCP", 3_000_000), (b"zTXt", 80_000_000)])
def test_texts_that_would_fill_the_memory_are_skipped(
    tmp_path: Path, kind: bytes, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    plain = io.BytesIO()
    quadrants().save(plain, "PNG")
    content, end = plain.getvalue(), 8 + 25  # of the signature and the header
    bomb = chunk(kind, b"k\0\0" + zlib.compress(bytes(size)))
    (tmp_path / "a.png").write_bytes(content[:end] + bomb + content[end:])
    read = read_image(tmp_path / "a.png")
    assert read.image.tobytes() == quadrants().tobytes() and not read.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "a.png" in caplog.text


def test_images_from_outside_are_opened_in_one_place() -> None:
    """The other places decode what celebctl itself has just encoded or drawn."""
    own = {"celebctl/reproduction.py", "celebctl/plotting.py", "celebctl/bench/runner.py"}
    own.add("runtime/celebctl_runtime/picture.py")
    shipped = [path for path in sources() if "training" not in path.parts]  # not the training of mini
    found = {where(path) for path in shipped if "Image.open(" in path.read_text(encoding="utf-8")}
    assert found - own == {"runtime/celebctl_runtime/image_files.py"}
