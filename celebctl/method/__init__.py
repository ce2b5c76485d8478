"""The paper's method in the paper's words: celeb basis, mapper, coefficients, learning.

Torch is imported by what needs it; asking for a preset does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import PRESETS, LearnConfig

if TYPE_CHECKING:
    from .basis import CelebBasis, build_basis
    from .learn import LearnStep, learn_people
    from .sheet import contact_sheet

__all__ = ["PRESETS", "CelebBasis", "LearnConfig", "LearnStep", "build_basis", "contact_sheet", "learn_people"]

_HOMES = {
    "CelebBasis": "basis",
    "build_basis": "basis",
    "LearnStep": "learn",
    "learn_people": "learn",
    "contact_sheet": "sheet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
