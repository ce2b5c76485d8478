"""The watermark: found again after what happens to pictures, not found where there is none."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from celebctl_runtime.watermark import THRESHOLD, add_watermark, find_watermark

PAYLOAD = 0x1234ABCD
Change = Callable[[Image.Image], Image.Image]


def picture(seed: int = 0, width: int = 384, height: int = 320) -> Image.Image:
    """Smooth colours, flat areas with hard edges, and a textured part: what drawings and photographs have."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(30, 225, (6, 6, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(6):
        left, top = int(random.integers(0, width - 80)), int(random.integers(0, height - 80))
        image.paste(tuple(map(int, random.integers(0, 256, 3))), (left, top, left + 70, top + 50))
    texture = random.normal(0, 12, (height // 2, width, 3)) + np.asarray(image, float)[: height // 2]
    image.paste(Image.fromarray(texture.clip(0, 255).astype(np.uint8)), (0, 0))
    return image


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return change


def scaled(factor: float) -> Change:
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


CHANGES: dict[str, Change] = {
    "nothing": lambda image: image,
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "a part": lambda image: image.crop((37, 21, 37 + image.width * 3 // 4, 21 + image.height * 3 // 4)),
    "half size": scaled(0.5),
    "another size": scaled(1.37),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "palette": lambda image: image.quantize(256),
    "alpha": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_mark_is_found_after_a_change(change: Change) -> None:
    for seed in range(3):
        found = find_watermark(change(add_watermark(picture(seed), PAYLOAD + seed)))
        assert found is not None and found.payload == PAYLOAD + seed and found.score > THRESHOLD


def test_the_scale_is_found() -> None:
    found = find_watermark(scaled(1.37)(add_watermark(picture(), PAYLOAD)))
    assert found is not None and found.scale == pytest.approx(1.37, abs=0.01)


def test_a_mark_is_hard_to_see() -> None:
    for seed in range(3):
        image = picture(seed)
        changed = np.asarray(add_watermark(image, seed), float) - np.asarray(image, float)
        assert 10 * np.log10(255**2 / (changed**2).mean()) > 45 and np.abs(changed).max() <= 4


def test_equal_arguments_give_equal_pixels() -> None:
    one, other = (add_watermark(picture(), PAYLOAD).tobytes() for _ in range(2))
    assert one == other != add_watermark(picture(), PAYLOAD + 1).tobytes()


def test_no_mark_is_found_where_there_is_none() -> None:
    for seed in range(10):
        assert find_watermark(picture(seed)) is None
    assert find_watermark(Image.new("RGB", (300, 300))) is None
    assert find_watermark(Image.new("L", (5, 1), 255)) is None


def test_another_key_finds_nothing() -> None:
    marked = add_watermark(picture(), PAYLOAD, b"ours")
    assert find_watermark(marked, b"theirs") is None
    assert find_watermark(marked) is None
    found = find_watermark(marked, b"ours")
    assert found is not None and found.payload == PAYLOAD


def test_two_marks_leave_no_wrong_number() -> None:
    """The bits of two marks contradict one another: check bits tell."""
    found = find_watermark(add_watermark(add_watermark(picture(), 0x0F0F0F0F), 0xFFFF0000))
    assert found is not None and found.payload in (None, 0x0F0F0F0F, 0xFFFF0000)


def test_a_small_picture_is_marked_without_harm() -> None:
    small = picture(width=100, height=90)
    marked = add_watermark(small, PAYLOAD)
    assert marked.size == small.size and marked.tobytes() != small.tobytes()


@pytest.mark.parametrize("payload", [-1, 2**32])
def test_a_payload_has_32_bits(payload: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        add_watermark(picture(), payload)
