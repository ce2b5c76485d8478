"""Fuzzing of everything that reads files from outside: `make fuzz`, or `python -m fuzz` in tests/."""
