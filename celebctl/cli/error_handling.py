"""What went wrong, in one line and a hint, and as an exit code. Called from the one catch in `main`."""

import errno
from typing import Any

import typer

from celebctl_runtime.errors import CelebctlError

from .console import CliConsole
from .hints import hint_for

BUG, ENVIRONMENT, INTERRUPTED = 1, 6, 130


def report_error(error: BaseException, console: CliConsole) -> int:
    """Say it; returns the exit code."""
    if console.debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, CelebctlError):
        console.error(error.code, error.problem, hint_for(error), error.reason)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        path = getattr(getattr(error, "ctx", None), "command_path", "celebctl")
        console.error("usage", _misuse(error), f"{path} --help shows what there is")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        console.error("interrupted", "stopped")
        return INTERRUPTED
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return 0  # the reader has seen enough (| head)
    if isinstance(error, MemoryError):
        console.error("environment", "there is not enough memory for this", "try a smaller --size, or close something else")
        return ENVIRONMENT
    hint = "" if console.debug else "run it again with --debug to see where, and please report it"
    console.error("bug", f"this should not happen: {type(error).__name__}: {error}", hint)
    return BUG


def _misuse(error: typer.TyperException) -> str:
    """Typer's message as one line that tells the value, which pydantic's part of the message leaves out."""
    options = getattr(getattr(error, "param", None), "opts", None)
    found: Any = getattr(error.__cause__, "errors", None)  # pydantic's
    if options and found is not None:
        first: Any = found()[0]
        return f"{max(options, key=len)} cannot be {first['input']!r}: {str(first['msg']).split(',')[0].lower()}"
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:]
