"""The description of one image: what runs, what is printed, and what is saved inside the image file.

A Request may leave values open (0, None or ""); :func:`resolve` fills them from the bundle's defaults, so that the
recipe in an image is complete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from .errors import UsageError, out_of_range
from .identity import check_name
from .prompting.layout import normalize_layout
from .prompting.likeness import FULL_LIKENESS, Likeness, check_likeness, likeness_from_json, likeness_to_json
from .prompting.weights import PLAIN, SYNTAXES

if TYPE_CHECKING:
    from .bundle.manifest import Manifest

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "lcm")
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100
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
    "syntax": (str,),
    "template": (str,),
    "toward": (str,),
    "blend": (int, float),
}
#: Entries left out of the JSON at these values, so that versions without them can read the recipe.
_OMITTED: dict[str, Any] = {
    "source": "",
    "likeness": FULL_LIKENESS,
    "layout": "",
    "syntax": PLAIN,
    "template": "",
    "toward": "",
    "blend": 0.0,
}


@dataclass(frozen=True)
class Request:
    """One image to generate.

    Attributes:
        prompt: Text with names of people, see prompting/prompt.py.
        negative: Negative prompt.
        seed: 0 to 2^63 - 1.
        steps: Sampler steps; 0 for the bundle's default.
        guidance: Classifier-free guidance scale; None for the bundle's default, 1 or less for none.
        sampler: One of :data:`SAMPLERS`; "" for the bundle's default.
        width: Pixels before any enlargement; 0 for the bundle's default.
        height: Like ``width``.
        identities: None when the prompt may name every person in the bundle. A tuple allows only these, so that a
            recipe keeps its meaning when a person named like one of its plain words is added to the bundle.
        source: Hex SHA-256 of the init image's file; "" to start from noise.
        strength: Share of the steps that run on an init image, (0, 1].
        likeness: 0 (the average celebrity) to 1 (as learned), for all or by name, see prompting/likeness.py.
        layout: Regions of the people, see prompting/layout.py; "" for the bundle's default.
        syntax: "plain": brackets in the prompts are plain characters, and a prompt is cut after 75 tokens; "weighted":
            they are weights and changes (prompting/weights.py, prompt_schedule.py), and a long prompt takes several
            windows. The pipeline sets "plain" where both give the same ids.
        template: The prompt before its wildcards were replaced (prompting/wildcards.py), for the reader of a recipe; ""
            when it had none.
        toward: A second prompt, whose encoding is mixed with that of ``prompt``; "" for none.
        blend: The weight of ``toward``, 0 (only ``prompt``) to 1 (only ``toward``).

    Example:
        >>> request = Request("alice playing chess", seed=42, steps=20)
        >>> Request.from_json(request.to_json()) == request
        True
        >>> [request.seed for request in batch(request, 3)]
        [42, 43, 44]
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
    syntax: str = PLAIN
    template: str = ""
    toward: str = ""
    blend: float = 0.0

    @property
    def skipped(self) -> int:
        """How many steps an init image skips: ``steps - int(steps * strength)``, as in diffusers."""
        return self.steps - min(int(self.steps * self.strength), self.steps)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values in a fixed order; the later entries, from source on, only when set."""
        data = asdict(self)
        if not self.source:
            del data["strength"]
        data["identities"] = None if self.identities is None else list(self.identities)
        data["likeness"] = likeness_to_json(self.likeness)
        return {key: value for key, value in data.items() if key not in _OMITTED or _OMITTED[key] != value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """The inverse of :meth:`to_json`; missing entries take their defaults. Raises UsageError for invalid ones."""
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"a request has no entry {unknown[0]!r}", f"entries are {', '.join(_KINDS)}")
        if "prompt" not in data:
            raise UsageError("the request has no prompt", 'give one: {"prompt": "alice playing chess"}')
        for key, value in data.items():
            if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
                raise UsageError(f"the request's {key} is {value!r}", f"expected {_expected(key)}")
        values = dict(data)
        names = cast("list[str] | None", values.get("identities"))
        values["identities"] = None if names is None else tuple(check_name(str(name)) for name in names)
        values["strength"] = float(values.get("strength", 1.0))
        values["blend"] = float(values.get("blend", 0.0))
        if values.get("guidance") is not None:
            values["guidance"] = float(values["guidance"])
        if "likeness" in values:
            values["likeness"] = likeness_from_json(values["likeness"])
        return cls(**values)


def batch(request: Request, count: int) -> tuple[Request, ...]:
    """``count`` requests with seeds ``seed``, ``seed + 1``, ...; image k equals the one generated alone."""
    return tuple(replace(request, seed=request.seed + k) for k in range(count))


def resolve(request: Request, manifest: Manifest) -> Request:
    """Fill open values from the bundle's defaults and check all. Raises UsageError naming value and range.

    ``identities`` is not resolved here: the pipeline sets it to the people that the prompts name.
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
    _check_text("second prompt", full.toward)
    _check_numbers(full)
    _check_size(full, manifest.size.multiple, min(MAX_SIDE, manifest.size.max_side))
    check_likeness(full.likeness)
    if full.syntax not in SYNTAXES:
        raise UsageError(f"there is no prompt syntax {full.syntax!r}", f"use one of {', '.join(SYNTAXES)}")
    return replace(full, layout=normalize_layout(full.layout))


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the {what} is not valid text: {text[:60]!r}", "use text that UTF-8 can encode") from error


def _check_numbers(request: Request) -> None:
    if not 0 <= request.seed <= MAX_SEED:
        raise out_of_range("seed", request.seed, 0, MAX_SEED)
    if not 1 <= request.steps <= MAX_STEPS:
        raise out_of_range("steps", request.steps, 1, MAX_STEPS)
    guidance = cast("float", request.guidance)
    if not math.isfinite(guidance) or not 0 <= guidance <= MAX_GUIDANCE:
        raise out_of_range("guidance", guidance, 0, MAX_GUIDANCE)
    if not 0 < request.strength <= 1:
        raise out_of_range("strength", request.strength, 0, 1)
    if request.strength < 1 and not request.source:
        raise UsageError(
            f"strength {request.strength:g} needs an init image", "give an init image", reason="strength_without_image"
        )
    if not 0 <= request.blend <= 1:
        raise out_of_range("blend", request.blend, 0, 1)
    if request.blend and not request.toward:
        problem = f"blend {request.blend:g} needs a second prompt"
        raise UsageError(problem, "give the prompt to blend with", reason="blend_without_prompt")
    if request.skipped >= request.steps:  # int(steps * strength) is 0
        raise UsageError(
            f"strength {request.strength:g} leaves none of {request.steps} steps",
            "raise strength or steps",
            reason="no_steps_left",
        )
    if request.sampler not in SAMPLERS:
        raise unknown_sampler(request.sampler)


def unknown_sampler(name: str) -> UsageError:
    """The error for a name that is not in :data:`SAMPLERS`."""
    hint = f"use one of {', '.join(SAMPLERS)}"
    return UsageError(f"there is no sampler {name!r}", hint, reason="unknown_sampler", name=name)


def _check_size(request: Request, multiple: int, largest: int) -> None:
    for side in (request.width, request.height):
        if side < multiple or side > largest or side % multiple:
            near = min(max(round(side / multiple), 1) * multiple, largest // multiple * multiple)
            raise UsageError(
                f"invalid size {request.width}x{request.height}: {side} is not a multiple of {multiple}"
                f" from {multiple} to {largest}",
                f"use {near} instead of {side}",
                reason="invalid_size",
                side=side,
                nearest=near,
            )


def _expected(key: str) -> str:
    names = {str: "text", int: "an integer", float: "a number", list: "a list of names", dict: "names and numbers"}
    return " or ".join(dict.fromkeys(names[kind] for kind in _KINDS[key] if kind in names))
