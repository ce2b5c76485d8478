"""Errors that a user can cause or fix. Bugs stay ordinary exceptions and end with exit code 1.

Each class has the exit code of the command line and a category word (``code``); an instance adds what went wrong
(``problem``), what to do (``hint``, in library terms) and, where programs may want to tell cases apart, a ``reason``
with named ``values``. The command line words its own hint for a reason (celebctl/cli/hints.py).

Example:
    >>> error = NotFoundError("no identity named 'bob'", "check the name", reason="unknown_identity", name="bob")
    >>> error.code, error.exit_code, error.reason, error.values["name"]
    ('not_found', 4, 'unknown_identity', 'bob')
"""

from __future__ import annotations

from typing import ClassVar


class CelebctlError(Exception):
    """Base class for ``except``; raise one of its subclasses.

    Args:
        problem: What went wrong, with the value that is wrong.
        hint: What to do about it, in terms of the Python API.
        reason: A stable snake_case word for this kind of problem, "" when the category says enough.
        values: What the problem is about, by name, for programs and for the hints of the command line.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "bug"

    def __init__(self, problem: str, hint: str = "", *, reason: str = "", **values: object) -> None:
        super().__init__(problem, hint)
        self.problem = problem
        self.hint = hint
        self.reason = reason
        self.values = values

    def __str__(self) -> str:
        return f"{self.problem} ({self.hint})" if self.hint else self.problem


class UsageError(CelebctlError):
    """An argument is invalid: a name, size, option or sampler. Exit code 2."""

    exit_code = 2
    code = "usage"


def out_of_range(what: str, value: float, minimum: float, maximum: float) -> UsageError:
    """The error for an argument ``what`` outside its limits; its reason is ``<what>_out_of_range``."""
    return UsageError(
        f"{what} {value} is out of range",
        f"use {minimum} to {maximum}",
        reason=f"{what}_out_of_range",
        value=value,
        minimum=minimum,
        maximum=maximum,
    )


class InvalidInputError(CelebctlError):
    """A file was read but cannot be used: no face, two faces, an image without a recipe. Exit code 3."""

    exit_code = 3
    code = "input"


class NotFoundError(CelebctlError):
    """A file, identity, model or bundle does not exist. Exit code 4."""

    exit_code = 4
    code = "not_found"


class IntegrityError(CelebctlError):
    """Data is damaged, belongs to another model, or was written by a newer version. Exit code 5."""

    exit_code = 5
    code = "integrity"


class SetupError(CelebctlError):
    """The machine lacks something: disk space, a permission, a package, a GPU, a free token row. Exit code 6."""

    exit_code = 6
    code = "environment"


class PolicyError(CelebctlError):
    """Refused on purpose, such as learning a likely minor. Exit code 7."""

    exit_code = 7
    code = "policy"


class PartialBatchError(CelebctlError):
    """Some items of a batch failed. Exit code 8, reserved for batch commands."""

    exit_code = 8
    code = "partial"


class BusyError(CelebctlError):
    """Another process holds the lock. Exit code 9."""

    exit_code = 9
    code = "busy"
