"""Our own list of well-known people, for models that bring no list of names. README.md says how it was made."""

from pathlib import Path

#: One "First Last" per line, sorted, UTF-8.
WELL_KNOWN = Path(__file__).with_name("well_known.txt")
