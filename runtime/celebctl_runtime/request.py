"""What is wanted, as one object: it is what runs, what is shown, and what is saved inside the picture.

A fresh Request may leave choices open (0, None or ""); :func:`resolve` fills them from the bundle's own defaults, so
that the recipe in a picture says everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from .errors import UsageError
from .identity import check_name
from .prompting.layout import normalize_layout
from .prompting.likeness import FULL_LIKENESS, Likeness, check_likeness, likeness_from_json, likeness_to_json

if TYPE_CHECKING:
    from .bundle.manifest import Manifest

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "lcm")
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_SIDE = 4096  # pixels

_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "seed": (int,),
    "steps": (int,),
    "guidance": (int, float, type(None)),
    "sampler": (str,),
    "width": (int,),
    "height": (int,),
    "identities": (list, tuple, type(None)),
    "source": (str,),
    "strength": (int, float),
    "likeness": (int, float, dict),
    "layout": (str,),
}
#: What is not written down: recipes that use none of these stay readable for those who know none.
_USUAL: dict[str, Any] = {"source": "", "likeness": FULL_LIKENESS, "layout": ""}


@dataclass(frozen=True)
class Request:
    """One picture. ``width``/``height`` in pixels of the model, before any enlargement.

    ``steps`` 0, ``guidance`` None, ``sampler`` "" and sizes 0 mean: the bundle's default. ``identities`` None means
    that every person in the bundle may be named in the prompt; a tuple means exactly these, so that a recipe keeps its
    meaning when a person with the name of one of its plain words joins the bundle later. ``source``: SHA-256 of the
    picture file to begin with instead of noise, and ``strength`` (0, 1], how much of it may change. ``likeness``: see
    likeness.py. ``layout``: who stands where, see layout.py; "" when nothing is said.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 0
    guidance: float | None = None
    sampler: str = ""
    width: int = 0
    height: int = 0
    identities: tuple[str, ...] | None = None
    source: str = ""
    strength: float = 1.0
    likeness: Likeness = FULL_LIKENESS
    layout: str = ""

    @property
    def skipped(self) -> int:
        """How many of the steps a picture that begins with another one leaves out (as diffusers counts them)."""
        return self.steps - min(int(self.steps * self.strength), self.steps)

    def to_json(self) -> dict[str, Any]:
        """The request as JSON-ready values, in a fixed order; source, likeness and layout only where asked for."""
        data = asdict(self)
        if not self.source:
            del data["strength"]
        data["identities"] = None if self.identities is None else list(self.identities)
        data["likeness"] = likeness_to_json(self.likeness)
        return {key: value for key, value in data.items() if key not in _USUAL or _USUAL[key] != value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """The inverse of :meth:`to_json`; missing entries take their defaults. Raises UsageError otherwise."""
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"a request has no entry {unknown[0]!r}", f"known entries: {', '.join(_KINDS)}")
        if "prompt" not in data:
            raise UsageError("the request has no prompt", 'give one: {"prompt": "alice playing chess"}')
        for key, value in data.items():
            if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
                raise UsageError(f"the request's {key} is {value!r}", f"expected {_expected(key)}")
        values = dict(data)
        names = cast("list[str] | None", values.get("identities"))
        values["identities"] = None if names is None else tuple(check_name(str(name)) for name in names)
        values["strength"] = float(values.get("strength", 1.0))
        if values.get("guidance") is not None:
            values["guidance"] = float(values["guidance"])
        if "likeness" in values:
            values["likeness"] = likeness_from_json(values["likeness"])
        return cls(**values)


def batch(request: Request, count: int) -> tuple[Request, ...]:
    """``count`` requests that differ in their seed only: picture k has seed + k and equals the single one's."""
    return tuple(replace(request, seed=request.seed + k) for k in range(count))


def resolve(request: Request, manifest: Manifest) -> Request:
    """Fill what is open from the bundle's defaults and check every value. Raises UsageError naming value and range.

    ``identities`` stays as it is: the tokenizer finds out who is named.
    """
    defaults, (height, width) = manifest.defaults, manifest.size.native
    full = replace(
        request,
        steps=request.steps or defaults.steps,
        guidance=float(defaults.guidance if request.guidance is None else request.guidance),
        sampler=request.sampler or defaults.sampler,
        width=request.width or width,
        height=request.height or height,
    )
    _check_text("prompt", full.prompt)
    _check_text("negative prompt", full.negative)
    _check_numbers(full)
    _check_size(full, manifest.size.multiple)
    check_likeness(full.likeness)
    return replace(full, layout=normalize_layout(full.layout))


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {what} is not valid text: {text[:60]!r}", "type it in UTF-8") from error


def _check_numbers(request: Request) -> None:
    if not 0 <= request.seed <= MAX_SEED:
        raise UsageError(f"seed {request.seed} is out of range", "use --seed 0 .. 9223372036854775807")
    if not 1 <= request.steps <= MAX_STEPS:
        raise UsageError(f"{request.steps} steps are out of range", f"use --steps 1 .. {MAX_STEPS}")
    guidance = cast("float", request.guidance)
    if not math.isfinite(guidance) or not 0 <= guidance <= MAX_GUIDANCE:
        raise UsageError(f"guidance {guidance} is out of range", f"use --guidance 0 .. {MAX_GUIDANCE:g}")
    if not 0 < request.strength <= 1 or (request.strength < 1 and not request.source):
        raise UsageError(
            f"strength {request.strength:g} cannot be", "use --from PICTURE with --strength above 0, up to 1"
        )
    if request.skipped >= request.steps:  # as int(steps * strength) is 0
        raise UsageError(
            f"strength {request.strength:g} of {request.steps} steps leaves none", "use more --strength or more --steps"
        )
    if request.sampler not in SAMPLERS:
        raise UsageError(
            f"there is no sampler {request.sampler!r}", f"use --sampler with one of {', '.join(SAMPLERS)}"
        )


def _check_size(request: Request, multiple: int) -> None:
    for side in (request.width, request.height):
        if side < multiple or side > MAX_SIDE or side % multiple:
            near = min(max(round(side / multiple), 1) * multiple, MAX_SIDE // multiple * multiple)
            raise UsageError(
                f"size {request.width}x{request.height} does not suit this model: {side} is no multiple of {multiple}"
                f" from {multiple} to {MAX_SIDE}",
                f"use {near} instead of {side}",
            )


def _expected(key: str) -> str:
    names = {str: "text", int: "a whole number", float: "a number", list: "a list of names", dict: "names and numbers"}
    return " or ".join(dict.fromkeys(names[kind] for kind in _KINDS[key] if kind in names))
