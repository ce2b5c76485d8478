"""Pictures in rows on one sheet, each with a line of text below: contact sheets, strips and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

_GAP, _LINE, _FONT_SIZE = 8, 22, 13  # pixels between cells, for the text below each, and of its letters
_PAPER, _INK = (250, 249, 246), (60, 58, 54)


def grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[Sequence[str]], *, cell: tuple[int, int] = (192, 192)
) -> Image.Image:
    """Rows of pictures of any size, each cropped around its centre to the shape of a cell.

    cell: width and height in pixels. Labels that are wider than a cell end in "...".

    Raises ValueError when labels and pictures differ in number.
    """
    (width, height), columns = cell, max(map(len, rows))
    size = (columns * (width + _GAP) + _GAP, len(rows) * (height + _LINE + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for r, (pictures, texts) in enumerate(zip(rows, labels, strict=True)):
        for c, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            left, top = _GAP + c * (width + _GAP), _GAP + r * (height + _LINE + _GAP)
            sheet.paste(ImageOps.fit(picture.convert("RGB"), cell, Image.Resampling.LANCZOS), (left, top))
            shown = text
            while draw.textlength(shown, font=font) > width and text:
                text = text[:-1]
                shown = f"{text.rstrip()}..."
            draw.text((left + width / 2, top + height + 3), shown, fill=_INK, font=font, anchor="ma")
    return sheet
