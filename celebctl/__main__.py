"""`python -m celebctl` is `celebctl`."""

import sys

from celebctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
