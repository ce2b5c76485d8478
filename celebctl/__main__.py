"""`python -m celebctl` is `celebctl`."""

import sys

from celebctl.cli import main

if __name__ == "__main__":
    code = main()
    # After an interrupt inside exec(), as in the import of a dataclass, CPython ends `python -m` by SIGINT, whatever
    # the exit code is, until another exec() has ended.
    exec("")
    sys.exit(code)
