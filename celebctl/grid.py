"""Images in a grid, with a line of text below each or with titles of columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from PIL import Image, ImageDraw, ImageFont, ImageOps

from celebctl_runtime.errors import UsageError

GAP = 8  # pixels around cells
MAX_PIXELS = 64_000_000  # of the cells of a sheet
_LINE, _FONT_SIZE = 22, 13  # pixels of the text
_BACKGROUND, _TEXT = (250, 249, 246), (60, 58, 54)
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def check_cells(count: int, cell: int, most: int) -> None:
    """Raise UsageError when so many square cells of this side in pixels are too many, or make too large a sheet."""
    if not 1 <= count <= most:
        raise UsageError(
            f"the sheet would have {count} cells", f"use 1 to {most}", reason="too_many_cells", count=count, most=most
        )
    largest = int((MAX_PIXELS / count) ** 0.5)
    if not 16 <= cell <= largest:
        problem = f"{count} cells of {cell} pixels are out of range"
        raise UsageError(problem, f"use cells of 16 to {largest} pixels", reason="cell_size_range", largest=largest)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[Sequence[str]],
    *,
    cell: tuple[int, int] = (192, 192),
    lines: int = 1,
) -> Image.Image:
    """A sheet of images of any size, each cropped around its centre to the shape of a cell.

    Args:
        rows: Images by row.
        labels: The text below each image; too long a text ends in "...".
        cell: Width and height in pixels.
        lines: How many lines a label may have; all rows get the height of the longest.

    Raises:
        ValueError: Labels and images differ in number.

    Example:
        >>> from PIL import Image
        >>> grid([[Image.new("RGB", (64, 64))] * 2], [["a", "b"]], cell=(100, 100)).size
        (224, 138)
    """
    (width, height), columns, font = cell, max(map(len, rows)), ImageFont.load_default(_FONT_SIZE)
    wrapped = [[_wrap(text, font, width, lines) for text in texts] for texts in labels]
    text_height = _LINE * max(1, *(len(parts) for texts in wrapped for parts in texts))
    size = (columns * (width + GAP) + GAP, len(rows) * (height + text_height + GAP) + GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for r, (images, texts) in enumerate(zip(rows, wrapped, strict=True)):
        for c, (image, parts) in enumerate(zip(images, texts, strict=True)):
            left, top = GAP + c * (width + GAP), GAP + r * (height + text_height + GAP)
            sheet.paste(ImageOps.fit(image.convert("RGB"), cell, Image.Resampling.LANCZOS), (left, top))
            for number, part in enumerate(parts):
                at = (left + width / 2, top + height + 3 + number * _LINE)
                draw.text(at, part, fill=_TEXT, font=font, anchor="ma")
    return sheet


def titled_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    titles: Sequence[str],
    *,
    heading: str,
    cell: tuple[int, int],
) -> Image.Image:
    """A sheet of images with a title above each column and left of each row.

    Args:
        rows: Images by row.
        columns: The title of each column.
        titles: The title of each row; "" for none.
        heading: The text above all, up to three lines.
        cell: Width and height of an image in pixels.
    """
    width, height = cell
    font_size = min(max(_FONT_SIZE, width // 14), 28)
    font, line = ImageFont.load_default(font_size), round(font_size * 1.4)
    wrapped = [_wrap(title, font, max(width * 3 // 4, 120), 4) for title in titles]
    margin = round(max((font.getlength(part) for parts in wrapped for part in parts), default=0))
    margin += 2 * GAP if margin else 0
    across = GAP + margin + len(columns) * (width + GAP)
    above = [_wrap(title, font, width, 2) for title in columns]
    head = _wrap(heading, font, across - 2 * GAP, 3)
    top = GAP + line * len(head) + GAP + line * max(map(len, above)) + GAP // 2
    sheet = Image.new("RGB", (across, top + len(rows) * (height + GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(head):
        draw.text((GAP, GAP + number * line), text, fill=_TEXT, font=font)
    for c, parts in enumerate(above):
        middle = GAP + margin + c * (width + GAP) + width / 2
        for number, text in enumerate(reversed(parts), 1):
            draw.text((middle, top - GAP // 2 - number * line), text, fill=_TEXT, font=font, anchor="ma")
    for r, (images, parts) in enumerate(zip(rows, wrapped, strict=True)):
        y = top + r * (height + GAP)
        for number, text in enumerate(parts):
            at = (margin - GAP // 2, y + (height - len(parts) * line) / 2 + number * line)
            draw.text(at, text, fill=_TEXT, font=font, anchor="ra")
        for c, image in enumerate(images):
            fitted = ImageOps.fit(image.convert("RGB"), cell, Image.Resampling.LANCZOS)
            sheet.paste(fitted, (GAP + margin + c * (width + GAP), y))
    return sheet


def pad(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """The whole image, reduced or enlarged to fit into a cell, on the sheet's background."""
    return ImageOps.pad(image.convert("RGB"), cell, Image.Resampling.LANCZOS, _BACKGROUND)


def _wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """The text in up to so many lines, broken between words; what does not fit ends in "..."."""

    def fits(part: str) -> bool:
        return font.getlength(part) <= width

    words, wrapped = text[: width * lines].split(), list[str]()  # more never fits, and measuring takes quadratic time
    while words:
        count = len(words)
        if len(wrapped) < lines - 1:
            starts = (" ".join(words[:n]) for n in range(1, len(words) + 1))
            count = sum(1 for _ in takewhile(fits, starts)) or 1
        wrapped.append(_shorten(" ".join(words[:count]), font, width))
        words = words[count:]
    return wrapped


def _shorten(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    shortened = (f"{text[:count].rstrip()}..." for count in range(1, len(text)))
    return max(takewhile(lambda shown: font.getlength(shown) <= width, shortened), key=len, default="...")
