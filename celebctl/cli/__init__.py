"""The command line. This file starts it and holds its only catch; each command has a file of its own.

Nothing heavy is imported here or in the command files: numpy, torch and onnxruntime are imported by the function that
needs them, so that `celebctl --help` answers at once.
"""

import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Desk

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: the process's own words) and return its exit code.

    0 ok, 1 bug, 2 usage, 3 input rejected, 4 not found, 5 integrity, 6 environment, 7 policy, 8 partial batch, 9 busy,
    130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        from celebctl import __version__

        sys.stdout.write(f"celebctl {__version__}\n")
        return 0
    from .console import Desk

    desk, words = Desk.from_words(words)
    try:
        from .app import app

        return int(app(words or ["--help"], prog_name="celebctl", standalone_mode=False, obj=desk) or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, desk)


def _report(error: BaseException, desk: "Desk") -> int:
    """Say what went wrong, in one line and a hint; returns the exit code."""
    import typer

    from celebctl_runtime.errors import CelebctlError

    if desk.debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, CelebctlError):
        desk.fail(error.code, error.problem, error.hint)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = str(getattr(context, "command_path", "celebctl"))
        message = error.format_message().replace("\n", " ").rstrip(".")
        desk.fail("usage", message[:1].lower() + message[1:], f"{path} --help shows what there is")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        desk.fail("interrupted", "stopped")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return 0  # the reader has seen enough (| head)
    if isinstance(error, MemoryError):
        desk.fail("environment", "there is not enough memory for this", "try a smaller --size or a smaller -n")
        return 6
    hint = "" if desk.debug else "run it again with --debug to see where, and please report it"
    desk.fail("bug", f"this should not happen: {type(error).__name__}: {error}", hint)
    return 1
