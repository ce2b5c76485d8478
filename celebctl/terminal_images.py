"""Images in terminals: the escape sequences of kitty, iTerm2 and sixel, and which terminal understands which.

Sources: kitty's "Terminal graphics protocol", iTerm2's "Inline Images Protocol", and the VT330/VT340 Programmer
Reference Manual, chapter 14, for sixel. Terminals are known by their environment; none is asked, as an answer would
mix with what the user types.
"""

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

TerminalProtocol = Literal["kitty", "iterm2", "sixel"]

PROTOCOLS: tuple[TerminalProtocol, ...] = ("kitty", "iterm2", "sixel")
_ESCAPE, _STRING_END = "\x1b", "\x1b\\"
_CHUNK = 4096  # characters of base64 in one kitty sequence
_COLOURS = 128  # of a sixel image
_KITTY_TERMS = ("xterm-kitty", "xterm-ghostty")
_ITERM2_PROGRAMS = ("iTerm.app", "WezTerm")
_SIXEL_TERMS = ("foot", "foot-extra", "mlterm", "mlterm-256color", "yaft-256color", "contour")
_MULTIPLEXERS = ("TMUX", "STY", "ZELLIJ")  # their variables: they do not pass images on


def terminal_protocol(environment: Mapping[str, str]) -> TerminalProtocol | None:
    """The protocol of the terminal that the environment describes; None when it is not known to show images.

    Example:
        >>> terminal_protocol({"TERM": "xterm-kitty"}), terminal_protocol({"TERM": "xterm-256color"})
        ('kitty', None)
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if any(environment.get(name) for name in _MULTIPLEXERS):
        return None
    if term in _KITTY_TERMS or environment.get("KITTY_WINDOW_ID") or program == "ghostty":
        return "kitty"
    if program in _ITERM2_PROGRAMS or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if term in _SIXEL_TERMS else None


def kitty(image: "Image", columns: int, rows: int, number: int = 0) -> str:
    """Show an image in so many cells, without moving the cursor.

    Args:
        image: RGB; the terminal scales it.
        columns: Cells across.
        rows: Cells down.
        number: An image of the same number, 1 or more, is replaced; 0 for an image that stays.
    """
    data = base64.b64encode(_png(image)).decode("ascii")
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    control = (
        f"a=T,f=100,c={columns},r={rows},C=1,q=2,{f'i={number},' if number else ''}"  # q=2: the terminal is silent
    )
    parts: list[str] = []
    for index, chunk in enumerate(chunks):
        more = int(index < len(chunks) - 1)
        parts.append(f"{_ESCAPE}_G{control if index == 0 else 'q=2,'}m={more};{chunk}{_STRING_END}")
    return "".join(parts)


def kitty_delete(number: int) -> str:
    """Remove the image of this number."""
    return f"{_ESCAPE}_Ga=d,d=I,i={number},q=2{_STRING_END}"


def iterm2(image: "Image", columns: int, rows: int) -> str:
    """Show an RGB image in so many cells; the terminal scales it."""
    data = _png(image)
    size = f"size={len(data)};width={columns};height={rows}"
    text = base64.b64encode(data).decode("ascii")
    return f"{_ESCAPE}]1337;File=inline=1;{size};preserveAspectRatio=1;doNotMoveCursor=1:{text}\a"


def sixel(image: "Image") -> str:
    """Show an RGB image pixel by pixel, in at most 128 colours.

    Six rows of pixels make a band. In a band every colour has a line of characters, one per column, whose six bits say
    which of the six pixels have the colour.
    """
    import numpy as np
    from PIL import Image

    indexed = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    palette = np.array(indexed.getpalette(), np.int64).reshape(-1, 3)
    pixels = np.asarray(indexed)
    height, width = pixels.shape
    padded = np.full((-(-height // 6) * 6, width), -1, np.int64)
    padded[:height] = pixels
    colours = np.unique(pixels).tolist()
    percent = (palette * 100 + 127) // 255
    parts = [f'{_ESCAPE}P0;1;0q"1;1;{width};{height}']
    parts += [f"#{colour};2;{';'.join(map(str, percent[colour].tolist()))}" for colour in colours]
    for band in padded.reshape(-1, 6, width):
        lines = [
            f"#{colour}" + _run_lengths(((band == colour) * (1 << np.arange(6))[:, None]).sum(0).tolist())
            for colour in np.unique(band[band >= 0]).tolist()
        ]
        parts.append("$".join(lines) + "-")
    return "".join(parts) + _STRING_END


def _run_lengths(bits: list[int]) -> str:
    """Sixel characters, with repetitions as !COUNT."""
    from itertools import groupby

    runs = [(chr(63 + value), len(list(group))) for value, group in groupby(bits)]
    return "".join(f"!{count}{mark}" if count > 3 else mark * count for mark, count in runs)


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
