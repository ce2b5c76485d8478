"""Errors as one line, a hint and an exit code. Called where `main` catches exceptions."""

import errno
from typing import Any

import typer

from celebctl_runtime.errors import CelebctlError, NotFoundError

from .console import CliConsole
from .hints import hint_for

BUG, ENVIRONMENT, INTERRUPTED = 1, 6, 130
_LONGEST = 2000  # characters of a message


def report_error(error: BaseException, console: CliConsole) -> int:
    """Print the error; returns the exit code."""
    if console.debug:
        console.traceback(error)
    if isinstance(error, CelebctlError):
        console.error(error.code, _shortened(error.problem), _shortened(hint_for(error)), error.reason)
        return error.exit_code
    if isinstance(error, typer.BadParameter) and error.message.endswith("is not readable."):
        problem = _usage_problem(error)  # Typer looks at the permissions of what is named; elsewhere that is code 4
        console.error(NotFoundError.code, problem, "check its permissions", "unreadable")
        return NotFoundError.exit_code
    if isinstance(error, typer.TyperException):
        path = getattr(getattr(error, "ctx", None), "command_path", "celebctl")
        console.error("usage", _usage_problem(error), f"see {path} --help")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        console.error("interrupted", "interrupted")
        return INTERRUPTED
    if isinstance(error, SystemExit):  # Typer's way to end when help cannot be written
        error = error.__context__ or error
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return 0  # the reader closed the pipe (| head)
    if isinstance(error, MemoryError):
        console.error("environment", "out of memory", "use a smaller --size, or close other programs")
        return ENVIRONMENT
    if isinstance(error, OSError) and error.errno is not None:  # of a path, a disk or a device: no bug of ours
        place = f"{error.filename}: " if error.filename else ""
        console.error("environment", f"{place}{error.strerror}", "check the path, its permissions and the disk")
        return ENVIRONMENT
    hint = "" if console.debug else "run the command again with --debug for a traceback, and please report it"
    console.error("bug", f"unexpected {type(error).__name__}: {error}", hint)
    return BUG


def _shortened(text: str) -> str:
    """A message that quotes much of a file, without its middle."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _usage_problem(error: typer.TyperException) -> str:
    """Typer's message in one line, with the invalid value, which pydantic's part of the message leaves out."""
    options = getattr(getattr(error, "param", None), "opts", None)
    errors: Any = getattr(error.__cause__, "errors", None)  # pydantic's
    if options and errors is not None:
        first: Any = errors()[0]
        return f"{max(options, key=len)} cannot be {first['input']!r}: {str(first['msg']).split(',')[0].lower()}"
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:]
