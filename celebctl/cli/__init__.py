"""The command line. This file starts it and holds its only catch; each command has a file of its own.

Nothing heavy is imported here or in the command files: numpy, torch and onnxruntime are imported by the function that
needs them, so that `celebctl --help` answers at once.
"""

import sys
from collections.abc import Sequence


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
    from .console import CliConsole

    console, words = CliConsole.from_argv(words)
    try:
        from .app import app

        return int(app(words or ["--help"], prog_name="celebctl", standalone_mode=False, obj=console) or 0)
    except (Exception, KeyboardInterrupt) as error:
        from .error_handling import report_error

        return report_error(error, console)
