"""Where image files keep recipes: text chunks of a PNG, and EXIF of JPEG and WebP.

In EXIF, ``UserComment`` has the web UI's text (as the web UI writes it: "UNICODE", NUL, UTF-16 big-endian), and
``MakerNote``, the place for a maker's own data, has "celebctl", NUL, and celebctl's document as UTF-8. Viewers show the
first and leave the second alone.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

from celebctl_runtime.image_files import ImageFile

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

OWN, PARAMETERS, INVOKEAI = "celebctl", "parameters", "invokeai_metadata"
JPEG_LIMIT = 65_533  # bytes of EXIF: a segment's length has 16 bits and counts itself
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE, _MAKE, _MODEL = 0x8769, 0x9286, 0x927C, 0x010F, 0x0110
_UNICODE, _MAKER = b"UNICODE\0", b"celebctl\0"
_CODES = {b"ASCII\0\0\0": "utf-8", bytes(8): "utf-8"}  # code of a UserComment -> encoding

_logger = logging.getLogger(__name__)


def png_info(texts: dict[str, str]) -> PngInfo:
    """Text chunks; those beyond ASCII as iTXt."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    return info


def exif_block(texts: dict[str, str], limit: int | None = None) -> bytes:
    """An EXIF block with the document and the web UI's text, b"" without either.

    Where it would exceed ``limit`` bytes, the web UI's text is left out, and then the document, with a warning.
    """
    kept = {key: texts[key] for key in (PARAMETERS, OWN) if key in texts}
    block = _exif(kept)
    for key, title in ((PARAMETERS, "the parameters text"), (OWN, "the recipe")):
        if limit is None or len(block) <= limit or key not in kept:
            continue
        _logger.warning("%s does not fit into %d bytes of EXIF and is left out; PNG and WebP hold it", title, limit)
        del kept[key]
        block = _exif(kept)
    return block


def texts_in(file: ImageFile) -> dict[str, str]:
    """The texts of a file that may be recipes, by the keyword of a PNG's text chunk. Unchecked."""
    return _exif_texts(file.exif) | dict(file.text)


def _exif(texts: dict[str, str]) -> bytes:
    from PIL import Image

    if not texts:
        return b""
    exif = Image.Exif()
    entries = exif.get_ifd(_EXIF_IFD)
    if PARAMETERS in texts:
        entries[_USER_COMMENT] = _UNICODE + texts[PARAMETERS].encode("utf-16-be")
    if OWN in texts:
        entries[_MAKER_NOTE] = _MAKER + texts[OWN].encode()
    return exif.tobytes()


def _exif_texts(block: bytes) -> dict[str, str]:
    from PIL import Image

    exif = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own words about damaged blocks
        try:
            exif.load(block)
            main, entries = dict(exif), dict(exif.get_ifd(_EXIF_IFD))
        except Exception:  # on hostile bytes Pillow's reader raises nearly anything
            return {}
    texts: dict[str, str] = {}
    note, comment = entries.get(_MAKER_NOTE), entries.get(_USER_COMMENT)
    if isinstance(note, bytes) and note.startswith(_MAKER):
        texts[OWN] = note.removeprefix(_MAKER).rstrip(b"\0").decode(errors="replace")
    if isinstance(comment, bytes):
        texts[PARAMETERS] = _user_comment(comment)
    for tag in (_MAKE, _MODEL):  # where ComfyUI puts its graphs in WebP
        key, colon, text = str(main.get(tag, "")).partition(":")
        if colon and key in ("prompt", "workflow"):
            texts[key] = text
    return texts


def _user_comment(raw: bytes) -> str:
    code, body = raw[:8], raw[8:]
    if code == _UNICODE:
        # EXIF leaves the byte order to the block, and programs differ: in most text one half of the bytes is zero.
        body = body[: len(body) // 2 * 2]
        order = "be" if body[0::2].count(0) >= body[1::2].count(0) else "le"
        return body.decode(f"utf-16-{order}", errors="replace").lstrip("\ufeff").rstrip("\0")
    return body.decode(_CODES[code], errors="replace").rstrip("\0") if code in _CODES else ""
