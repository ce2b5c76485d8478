"""gen --preview: what is being drawn, in the terminal or in a file.

Escape sequences go to stderr, and only when that is a terminal. A preview takes the place of the progress bar.
"""

import contextlib
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from celebctl_runtime.progress import ProgressCallback

from .console import CliConsole

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl.terminal_images import TerminalProtocol
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.preview import Preview

AUTO, OFF = "auto", "off"
_PIXELS_PER_LATENT, _MIN_HEIGHT = 8, 128  # of an image in a file
ROWS = 12  # cells of the terminal
_CELL_HEIGHT = 12  # pixels, where the terminal does not say: less than most fonts, so that the image fits
_NUMBER = 73_517  # of kitty's image that is replaced
_SOFTWARE = "celebctl preview"  # marks a file that may be replaced
_MARK_WITHIN = 256  # bytes


class PreviewDisplay(Protocol):
    """Shows what is being drawn."""

    def track(self, title: str) -> contextlib.AbstractContextManager[ProgressCallback]:
        """Yield a progress callback for the drawing of some images."""
        ...

    def finished(self, image: "Image") -> None:
        """Show a finished image."""
        ...


def choose_preview(console: CliConsole, wanted: str, force: bool, *, screened: bool = False) -> PreviewDisplay | None:
    """The display for a value of --preview; None for no preview.

    screened: Whether a safety checker is to see the images first; "auto" then shows no preview.

    Raises UsageError.
    """
    from celebctl.terminal_images import PROTOCOLS, terminal_protocol
    from celebctl_runtime.errors import UsageError

    if wanted == OFF or (screened and wanted == AUTO):
        return None
    if Path(wanted).suffix.lower() == ".png":
        if screened:
            raise _unscreened()
        path = Path(wanted)
        _refuse_foreign(path, force)
        return FilePreview(console, path)
    protocol: TerminalProtocol | None = next((one for one in PROTOCOLS if one == wanted), None)
    if protocol is None and wanted != AUTO:
        raise UsageError(
            f"invalid --preview {wanted!r}", f"use {AUTO}, {OFF}, {', '.join(PROTOCOLS)}, or a file ending in .png"
        )
    if screened:
        raise _unscreened()
    if not console.interactive:
        return None
    protocol = protocol or terminal_protocol(os.environ)
    return None if protocol is None else TerminalPreview(console, protocol)


@dataclass
class FilePreview:
    """A PNG file that is replaced as the image grows, and at last holds the finished image."""

    console: CliConsole
    path: Path

    @contextlib.contextmanager
    def track(self, title: str) -> Generator[ProgressCallback]:
        """See `PreviewDisplay.track`."""
        from celebctl_runtime.preview import previews

        with self.console.track(title) as progress:
            yield previews(self._show, progress)

    def finished(self, image: "Image") -> None:
        """See `PreviewDisplay.finished`."""
        self._write(image, image.height)

    def _show(self, preview: "Preview") -> None:
        image = preview.image()
        self._write(image, _PIXELS_PER_LATENT * image.height)

    def _write(self, image: "Image", height: int) -> None:
        """Replace the file in one step; a preview that a power cut destroys need not be flushed to the disk."""
        from PIL.Image import Resampling
        from PIL.PngImagePlugin import PngInfo

        from celebctl_runtime.files import translate_os_errors

        height = max(height, _MIN_HEIGHT)
        image = image.resize((round(height * image.width / image.height), height), Resampling.BICUBIC)
        info = PngInfo()
        info.add_text("Software", _SOFTWARE)
        temporary = self.path.with_name(f".{self.path.stem[:64]}.{os.getpid()}.png")
        with translate_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                image.save(temporary, "PNG", pnginfo=info, compress_level=0)  # compressing takes longer than writing
                temporary.replace(self.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


@dataclass
class TerminalPreview:
    """An image above a line with the steps. Both are removed when the images are drawn, and the finished one stays."""

    console: CliConsole
    protocol: "TerminalProtocol"
    _shown: bool = False

    @contextlib.contextmanager
    def track(self, title: str) -> Generator[ProgressCallback]:
        """See `PreviewDisplay.track`."""
        from celebctl_runtime.preview import previews

        self._shown, self._title = False, title
        try:
            yield previews(self._show)
        except KeyboardInterrupt:
            self._emit("\n" if self._shown else "")  # the preview stays
            raise
        except BaseException:
            self._remove()
            raise
        self._remove()

    def finished(self, image: "Image") -> None:
        """See `PreviewDisplay.finished`."""
        self._emit("\n" * ROWS + self._drawn(image, 0))

    def _show(self, preview: "Preview") -> None:
        line = f"\r\x1b[2K{self._title}  {preview.step}/{preview.total}"
        self._emit(("" if self._shown else "\n" * ROWS) + self._drawn(preview.image(), _NUMBER) + line)
        self._shown = True

    def _drawn(self, image: "Image", number: int) -> str:
        """The image in the rows above the cursor, which comes back."""
        from PIL.Image import Resampling

        from celebctl.terminal_images import iterm2, kitty, sixel

        columns = max(1, round(2 * ROWS * image.width / image.height))  # a cell is about twice as high as wide
        if self.protocol == "kitty":
            shown = kitty(image, columns, ROWS, number)
        elif self.protocol == "iterm2":
            shown = iterm2(image, columns, ROWS)
        else:
            height = ROWS * _cell_height()
            size = round(height * image.width / image.height), height
            shown = sixel(image.resize(size, Resampling.BICUBIC))
        return f"\r\x1b[{ROWS}A\x1b7{shown}\x1b8\x1b[{ROWS}B"

    def _remove(self) -> None:
        from celebctl.terminal_images import kitty_delete

        if self._shown:
            self._emit(f"\r\x1b[{ROWS}A\x1b[0J" + (kitty_delete(_NUMBER) if self.protocol == "kitty" else ""))
            self._shown = False

    def _emit(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _unscreened() -> "UsageError":
    from celebctl_runtime.errors import UsageError

    return UsageError(
        "--preview would show what the safety checker refuses",
        f"use --preview {OFF}, or draw without a safety checker",
        reason="preview_unscreened",
    )


def _refuse_foreign(path: Path, force: bool) -> None:
    """Raise UsageError for a file that is no earlier preview, unless `force` is set."""
    from celebctl_runtime.files import refuse_existing

    try:
        with path.open("rb") as file:
            is_preview = _SOFTWARE.encode() in file.read(_MARK_WITHIN)
    except OSError:
        is_preview = False
    refuse_existing(path, force or is_preview)


def _cell_height() -> int:
    """Pixels of a line of the terminal, which it rounds down."""
    try:
        import fcntl
        import struct
        import termios

        rows, _, _, height = struct.unpack("HHHH", fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8)))
        return height // rows if rows and height else _CELL_HEIGHT
    except (ImportError, OSError, ValueError):
        return _CELL_HEIGHT
