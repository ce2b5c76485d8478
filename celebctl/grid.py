"""Images in a grid, each with a line of text below: contact sheets, strips and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 8  # pixels around cells
_LINE, _FONT_SIZE = 22, 13  # pixels of the text
_BACKGROUND, _TEXT = (250, 249, 246), (60, 58, 54)


def grid(
    rows: Sequence[Sequence[Image.Image]], labels: Sequence[Sequence[str]], *, cell: tuple[int, int] = (192, 192)
) -> Image.Image:
    """A sheet of images of any size, each cropped around its centre to the shape of a cell.

    Args:
        rows: Images by row.
        labels: The text below each image; too wide a text ends in "...".
        cell: Width and height in pixels.

    Raises:
        ValueError: Labels and images differ in number.

    Example:
        >>> from PIL import Image
        >>> grid([[Image.new("RGB", (64, 64))] * 2], [["a", "b"]], cell=(100, 100)).size
        (224, 138)
    """
    (width, height), columns = cell, max(map(len, rows))
    size = (columns * (width + GAP) + GAP, len(rows) * (height + _LINE + GAP) + GAP)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for r, (images, texts) in enumerate(zip(rows, labels, strict=True)):
        for c, (image, text) in enumerate(zip(images, texts, strict=True)):
            left, top = GAP + c * (width + GAP), GAP + r * (height + _LINE + GAP)
            sheet.paste(ImageOps.fit(image.convert("RGB"), cell, Image.Resampling.LANCZOS), (left, top))
            shown = text
            while draw.textlength(shown, font=font) > width and text:
                text = text[:-1]
                shown = f"{text.rstrip()}..."
            draw.text((left + width / 2, top + height + 3), shown, fill=_TEXT, font=font, anchor="ma")
    return sheet
