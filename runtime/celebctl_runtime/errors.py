"""Every problem a person can cause or cure, as one small family of exceptions.

Each carries what went wrong with which value (``problem``), what to type next (``hint``), the exit code of the command
line and a stable word for ``--json``. What is *not* here: bugs. Those stay ordinary exceptions and end with code 1.
"""

from __future__ import annotations

from typing import ClassVar


class CelebctlError(Exception):
    """A problem with a cure. Raise one of the children; the parent is for ``except``."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "bug"

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} ({self.hint})" if self.hint else self.problem


class UsageProblem(CelebctlError):
    """The request itself makes no sense: a bad name, size, option or sampler."""

    exit_code = 2
    code = "usage"


class InputRejected(CelebctlError):
    """A file was understood but cannot serve: no face, two faces, a picture without a recipe."""

    exit_code = 3
    code = "input"


class NotFound(CelebctlError):
    """A file, person, model or bundle that was asked for does not exist."""

    exit_code = 4
    code = "not_found"


class IntegrityProblem(CelebctlError):
    """Data that is damaged, made for another model, or written by a newer version."""

    exit_code = 5
    code = "integrity"


class EnvironmentProblem(CelebctlError):
    """The machine lacks something: disk space, a permission, a package, a GPU, a free row."""

    exit_code = 6
    code = "environment"


class PolicyRefusal(CelebctlError):
    """Possible, but not done on purpose."""

    exit_code = 7
    code = "policy"


class PartialBatch(CelebctlError):
    """Some items of a batch were finished and some were not."""

    exit_code = 8
    code = "partial"


class Busy(CelebctlError):
    """Another process holds the lock on the thing that is to be changed."""

    exit_code = 9
    code = "busy"
