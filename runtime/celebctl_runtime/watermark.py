"""An imperceptible watermark in the pixels: 32 bits of payload and 16 check bits.

Spread spectrum in the DCT domain (Cox et al. 1997, Secure Spread Spectrum Watermarking for Multimedia): a tile of
16 x 16 blocks of 8 x 8 pixels, in which each block carries one DCT coefficient of middle frequency, plus or minus. A
quarter of the blocks, at places and with signs drawn from the key, is the same in all pictures: it tells whether there
is a mark, and where a tile begins. The other blocks carry 48 bits, four blocks each. The tile is repeated over the
picture and added to red, green and blue alike, so that parts of a picture hold it, too.

Whoever wants to remove it can: it withstands what happens to pictures by chance, not an attack, and without a secret
key anyone can write it into other pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

PUBLIC_KEY = b"celebctl"
TILE = 128  # pixels
SMALLEST = TILE  # shorter side of a picture that holds all bits
PAYLOAD_BITS, CHECK_BITS = 32, 16
DEVIATION = 1.15  # of the tile, in 8-bit levels: about 46.5 dB
#: z-score of the best place among all tried, from which there is a mark. Unmarked pictures: benchmarks/watermark.py.
THRESHOLD = 8.5

_BLOCK, _SIDE = 8, TILE // 8
_BITS, _CHIPS = PAYLOAD_BITS + CHECK_BITS, 4  # blocks of each bit in a tile
#: (vertical, horizontal) frequencies: high enough to be hard to see, low enough for half the size and for JPEG.
_FREQUENCIES = ((1, 2), (2, 1), (2, 2), (0, 3), (3, 0), (1, 3), (3, 1))
_MIDDLE = 128  # the level that stands for no change while the tile is added
_WINDOW = 9  # pixels over which the picture is made flat before the search
#: Sizes that pictures are drawn at; a picture whose sides are another multiple of them was probably scaled.
_USUAL_SIDES = (256, 512, 768, 1024, 1536, 2048)
_USUAL_SCALES = (1.0, 0.5, 0.75, 1.25, 1.5, 2.0)
_SCALES = 0.33, 3.0
_MAX_SIDE = 2048  # pixels searched: a tile repeats, so a part of a larger picture is enough


@dataclass(frozen=True)
class Watermark:
    """What was found in a picture.

    Attributes:
        payload: 0 to 2**32 - 1; None where the mark is there but its check bits are wrong.
        score: z-score of the mark's place, at least `THRESHOLD`.
        scale: How many times larger the picture is than it was when it was marked.
    """

    payload: int | None
    score: float
    scale: float


def add_watermark(image: Image, payload: int, key: bytes = PUBLIC_KEY) -> Image:
    """The picture with the mark.

    Args:
        image: RGB; a side under `SMALLEST` (128 pixels) holds only a part of the bits.
        payload: 0 to 2**32 - 1.
        key: Who does not know it finds no mark.

    Returns:
        A new RGB picture of the same size, about 46 dB from the first; equal arguments give equal pixels.

    Example:
        >>> from PIL import Image
        >>> marked = add_watermark(Image.new("RGB", (256, 256), "teal"), 1234)
        >>> find_watermark(marked).payload
        1234
    """
    from PIL import Image, ImageChops

    if not 0 <= payload < 1 << PAYLOAD_BITS:
        raise ValueError(f"payload {payload} does not fit into {PAYLOAD_BITS} bits")
    levels = (np.rint(_tile(payload, key)) + _MIDDLE).astype(np.uint8)
    repeats = -(-image.height // TILE), -(-image.width // TILE)
    whole = np.ascontiguousarray(np.tile(levels, repeats)[: image.height, : image.width])
    layer = Image.fromarray(whole)
    return ImageChops.add(image, Image.merge("RGB", (layer, layer, layer)), 1, -_MIDDLE)


def find_watermark(image: Image, key: bytes = PUBLIC_KEY) -> Watermark | None:
    """The mark in a picture, which may have been cropped, scaled or compressed since; None where there is none.

    Args:
        image: A picture in any mode of Pillow.
        key: The key it was marked with.

    Returns:
        The best mark: one whose check bits are right before one whose are not.
    """
    grey = np.asarray(_part(image).convert("L"), np.float32)
    if min(grey.shape) < SMALLEST // 4:
        return None
    flat, best = _flattened(grey), None
    for scale in _candidate_scales(image.size, flat):
        found = _search(_resized(flat, scale), scale, key)
        if found is not None and (best is None or found.score > best.score):
            best = found
        if found is not None and found.payload is not None:
            return found
    return best


@dataclass(frozen=True, eq=False)
class _Pattern:
    """What a key stands for. sync: (T, T); bits: (48, T * T), the tile of each bit when it is 1."""

    sync: NDArray[np.float32]
    bits: NDArray[np.float32]


@lru_cache(maxsize=4)
def _pattern(key: bytes) -> _Pattern:
    digest = hashlib.sha256(b"celebctl watermark 1:" + key).digest()
    random = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
    blocks = _SIDE * _SIDE
    signs = np.where(random.random(blocks) < 0.5, -1.0, 1.0)
    frequencies = random.integers(0, len(_FREQUENCIES), blocks)
    order = random.permutation(blocks)
    waves = np.stack([_wave(*_FREQUENCIES[int(index)]) for index in frequencies]) * signs[:, None, None]

    def tile(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        kept = np.zeros_like(waves)
        kept[chosen] = waves[chosen]
        rows = kept.reshape(_SIDE, _SIDE, _BLOCK, _BLOCK).transpose(0, 2, 1, 3)
        return rows.reshape(TILE, TILE).astype(np.float32)

    carriers = order[: _BITS * _CHIPS].reshape(_BITS, _CHIPS)
    bits = np.stack([tile(chosen).ravel() for chosen in carriers])
    sync = tile(order[_BITS * _CHIPS :])
    factor = DEVIATION / np.float32((sync.ravel() + bits.sum(0)).std())
    return _Pattern(sync * factor, bits * factor)


def _wave(vertical: int, horizontal: int) -> NDArray[np.float64]:
    """(8, 8), a function of the DCT of length 1."""
    angles = (2 * np.arange(_BLOCK) + 1) * np.pi / (2 * _BLOCK)
    wave = np.outer(np.cos(vertical * angles), np.cos(horizontal * angles))
    return wave / np.linalg.norm(wave)


def _tile(payload: int, key: bytes) -> NDArray[np.float32]:
    pattern, word = _pattern(key), payload << CHECK_BITS | _check_bits(payload)
    signs = np.array([1.0 if word >> index & 1 else -1.0 for index in range(_BITS)], np.float32)
    return (pattern.sync + (signs @ pattern.bits).reshape(TILE, TILE)).astype(np.float32)


def _check_bits(payload: int) -> int:
    """CRC-16/CCITT of the payload's four bytes."""
    import binascii

    return binascii.crc_hqx(payload.to_bytes(4, "big"), 0xFFFF)


def _search(flat: NDArray[np.float32], scale: float, key: bytes) -> Watermark | None:
    """The mark of a flat picture at its own scale: all tiles are added up, and the sum is compared at every offset."""
    pattern, folded = _pattern(key), _folded(flat)
    spectrum = np.fft.rfft2(folded) * np.conj(np.fft.rfft2(pattern.sync))
    match = np.fft.irfft2(spectrum, (TILE, TILE))
    place = int(match.argmax())
    score = float((match.flat[place] - match.mean()) / (match.std() + 1e-12))
    if score < THRESHOLD:
        return None
    down, right = divmod(place, TILE)
    aligned = np.roll(folded, (-down, -right), (0, 1)).ravel()
    word = sum(1 << index for index, value in enumerate(pattern.bits @ aligned) if value > 0)
    payload = word >> CHECK_BITS
    return Watermark(payload if _check_bits(payload) == word & 0xFFFF else None, score, scale)


def _folded(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, T), the sum of all tiles of (H, W), each place divided by the root of how many pixels it has."""
    height, width = flat.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((rows * TILE, columns * TILE), np.float32)
    padded[:height, :width] = flat
    total = padded.reshape(rows, TILE, columns, TILE).sum((0, 2))
    places = np.arange(TILE)
    down, across = (-(-(size - places) // TILE) for size in (height, width))  # tiles that reach each row and column
    return (total / np.sqrt(np.maximum(np.outer(down, across), 1))).astype(np.float32)


def _flattened(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture without its brightness and contrast: what is left of edges is not stronger than a mark."""
    detail = grey - _box_mean(grey)
    return (detail / (_box_mean(np.abs(detail)) + 1.0)).clip(-3.0, 3.0)


def _box_mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    half = _WINDOW // 2
    sums = np.pad(values, ((half + 1, half), (half + 1, half)), "reflect").cumsum(0, np.float64)
    sums = (sums[_WINDOW:] - sums[:-_WINDOW]).cumsum(1)
    return ((sums[:, _WINDOW:] - sums[:, :-_WINDOW]) / _WINDOW**2).astype(np.float32)


def _part(image: Image) -> Image:
    """The middle of a picture that is larger than needed."""
    width, height = min(image.width, _MAX_SIDE), min(image.height, _MAX_SIDE)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _resized(flat: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """The picture at 1 / scale of its size."""
    if scale == 1.0:
        return flat
    from PIL import Image

    size = max(round(flat.shape[1] / scale), 1), max(round(flat.shape[0] / scale), 1)
    return np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.BICUBIC))


def _candidate_scales(size: tuple[int, int], flat: NDArray[np.float32]) -> list[float]:
    """Scales to try, the likely ones first."""
    usual = [*_USUAL_SCALES, *(side / usual for usual in _USUAL_SIDES for side in size)]
    inside = [scale for scale in [*usual, *_repeating_scales(flat)] if _SCALES[0] <= scale <= _SCALES[1]]
    return list(dict.fromkeys(round(scale, 4) for scale in inside))


def _repeating_scales(flat: NDArray[np.float32], count: int = 6) -> list[float]:
    """Scales at which the picture agrees best with itself one tile further right, further down, and both.

    The autocorrelation comes from the power spectrum (Wiener-Khinchin), with a flat spectrum so that only what repeats
    is left.
    """
    shape = [1 << (2 * side - 1).bit_length() for side in flat.shape]
    spectrum = np.fft.rfft2(flat, shape)
    power = np.abs(spectrum)
    correlation = np.fft.irfft2(power / (power.mean() + 1e-12), shape)
    lags = np.arange(TILE * _SCALES[0], min(TILE * _SCALES[1], 0.75 * min(flat.shape)), 0.25)
    if lags.size == 0:
        return []
    near = np.rint(lags).astype(int)
    agreement = correlation[near, 0] + correlation[0, near] + correlation[near, near] + correlation[near, -near]
    best = np.argsort(agreement)[::-1]
    found: list[float] = []
    for index in best:
        if all(abs(lags[index] - TILE * scale) > 0.6 for scale in found):
            found.append(float(lags[index]) / TILE)
        if len(found) == count:
            break
    return found
