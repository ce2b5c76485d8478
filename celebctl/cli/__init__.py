"""The command line: `main` runs one command; each command has a file of its own.

Nothing heavy is imported at the top of these files: numpy, torch and onnxruntime are imported by the function that
needs them, so that `celebctl --help` is fast.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

#: Former names of options, still valid, by command; "" holds for every command. As `app.FORMER_COMMANDS`.
FORMER_OPTIONS: dict[str, dict[str, str]] = {
    "": {"--shelf": "--for-model"},
    "mix": {"--t": "--weight"},
    "eval": {"--together": "--batch-size"},
    "bench": {"--alone": "--no-baseline", "--cold": "--cold-starts"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: the process's arguments) and return its exit code.

    0 success, 1 bug, 2 usage, 3 invalid input, 4 not found, 5 integrity, 6 environment, 7 policy, 8 partial,
    9 busy, 130 interrupted, 143 terminated (SIGTERM).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        from celebctl import __version__

        sys.stdout.write(f"celebctl {__version__}\n")
        return 0
    from .console import CliConsole
    from .termination import TERMINATED, interrupt_on_sigterm

    console, arguments = CliConsole.from_argv(arguments)
    with console.show_log(), interrupt_on_sigterm() as received:
        try:
            require_current_folder()
            from .app import app

            arguments = replace_former_options(arguments) or ["--help"]
            code = int(app(arguments, prog_name="celebctl", standalone_mode=False, obj=console) or 0)
        except BaseException as error:  # a panic of a library in Rust is no Exception
            from .error_handling import report_error

            code = report_error(error, console)
        return TERMINATED if received else code


def require_current_folder() -> None:
    """Raise SetupError when the current folder was removed: paths mean nothing there, and libraries fail to load."""
    from celebctl_runtime.errors import SetupError

    try:
        Path.cwd()
    except FileNotFoundError as error:
        problem, hint = "the current folder does not exist any more", "change to another folder"
        raise SetupError(problem, hint, reason="no_current_folder") from error


def replace_former_options(arguments: Sequence[str]) -> list[str]:
    """The arguments with former names of options replaced, up to a `--`."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    former = FORMER_OPTIONS[""] | FORMER_OPTIONS.get(command, {})
    end = arguments.index("--") if "--" in arguments else len(arguments)
    current: list[str] = []
    for argument in arguments[:end]:
        option, equals, value = argument.partition("=")
        current.append(f"{former.get(option, option)}{equals}{value}")
    return [*current, *arguments[end:]]
