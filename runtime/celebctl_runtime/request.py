"""The description of one image: what runs, what is printed, and what is saved inside the image file.

A Request may leave values open (0, None or ""); :func:`resolve` fills them from the bundle's defaults, so that the
recipe in an image is complete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from .errors import UsageError, out_of_range
from .identity import check_name
from .prompting.layout import NONE, normalize_layout
from .prompting.likeness import FULL_LIKENESS, Likeness, check_likeness, likeness_from_json, likeness_to_json
from .prompting.weights import PLAIN, SYNTAXES

if TYPE_CHECKING:
    from .bundle.manifest import Manifest

SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "lcm")
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100
MAX_SIDE = 4096  # pixels
MAX_MASK_BLUR = 128  # pixels
DEFAULT_THRESHOLD = 0.5  # Couairon et al. 2023, section 3.2
DEFAULT_HIRES_STRENGTH = 0.5
_BLUR_SHARE = 128  # the default: one pixel for so many of the shorter side
REFINE_STRENGTH = 0.2  # measured with mini, docs/benchmarks.md

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
    "mask": (str,),
    "mask_blur": (int, type(None)),
    "mask_invert": (bool,),
    "was": (str, type(None)),
    "threshold": (int, float),
    "hires": (str,),
    "hires_strength": (int, float),
    "refine_faces": (str,),
    "refine_strength": (int, float),
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
    "mask": "",
    "mask_blur": None,
    "mask_invert": False,
    "was": None,
    "threshold": DEFAULT_THRESHOLD,
    "hires": "",
    "hires_strength": DEFAULT_HIRES_STRENGTH,
    "refine_faces": "",
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
        mask: Hex SHA-256 of the file of the mask that says what of the init image changes; equal to ``source`` for the
            init image's own transparent parts; "" to change everything.
        mask_blur: Pixels over which the mask's edge rises, 0 to 128; None for 1/128 of the shorter side, at least 1.
        mask_invert: Change what the mask keeps, and keep what it changes.
        was: What the init image shows, as a prompt; what differs in ``prompt`` is then found and changed, and the rest
            kept (DiffEdit); None for no such edit.
        threshold: For an edit, how large a difference has to be to count, above 0 to 1; larger changes less.
        hires: Size of a second pass, "WxH" in pixels or a factor such as "2x": the image is enlarged and drawn again
            from there; "" for none.
        hires_strength: Like ``strength``, of the second pass.
        refine_faces: Faces to draw again at native size, see face_redrawing.py: regions as in a layout, one per person;
            "auto" to have them found; "" for none.
        refine_strength: Share of the steps that run on each of these faces, (0, 1].
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
    mask: str = ""
    mask_blur: int | None = None
    mask_invert: bool = False
    was: str | None = None
    threshold: float = DEFAULT_THRESHOLD
    hires: str = ""
    hires_strength: float = DEFAULT_HIRES_STRENGTH
    refine_faces: str = ""
    refine_strength: float = REFINE_STRENGTH
    syntax: str = PLAIN
    template: str = ""
    toward: str = ""
    blend: float = 0.0

    @property
    def skipped(self) -> int:
        """How many steps an init image skips: ``steps - int(steps * strength)``, as in diffusers."""
        return self.steps - min(int(self.steps * self.strength), self.steps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the image that a resolved request gives."""
        return _hires_size(self.hires) if self.hires else (self.width, self.height)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values in a fixed order; source, strength and what follows them only when set."""
        data = asdict(self)
        if not self.source:
            del data["strength"]
        if not self.refine_faces:
            del data["refine_strength"]
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
            if not isinstance(value, _KINDS[key]) or (isinstance(value, bool) and bool not in _KINDS[key]):
                raise UsageError(f"the request's {key} is {value!r}", f"expected {_expected(key)}")
        values = dict(data)
        names = cast("list[str] | None", values.get("identities"))
        values["identities"] = None if names is None else tuple(check_name(str(name)) for name in names)
        values["strength"] = float(values.get("strength", 1.0))
        values["refine_strength"] = float(values.get("refine_strength", REFINE_STRENGTH))
        values["blend"] = float(values.get("blend", 0.0))
        if values.get("guidance") is not None:
            values["guidance"] = float(values["guidance"])
        for name, default in (("threshold", DEFAULT_THRESHOLD), ("hires_strength", DEFAULT_HIRES_STRENGTH)):
            values[name] = float(values.get(name, default))
        if "likeness" in values:
            values["likeness"] = likeness_from_json(values["likeness"])
        return cls(**values)


def batch(request: Request, count: int) -> tuple[Request, ...]:
    """``count`` requests with seeds ``seed``, ``seed + 1``, ...; image k equals the one generated alone."""
    return tuple(replace(request, seed=request.seed + k) for k in range(count))


def second_pass(request: Request, source: str) -> Request:
    """The request for the second pass of a resolved one, from the first image with the digest ``source``.

    Its faces are not listed: they are drawn again once, in the result.
    """
    width, height = _hires_size(request.hires)
    return replace(
        request, width=width, height=height, source=source, strength=request.hires_strength, hires="",
        hires_strength=DEFAULT_HIRES_STRENGTH, refine_faces="",
    )  # fmt: skip


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
    _check_text("old prompt", full.was or "")
    _check_text("second prompt", full.toward)
    _check_numbers(full)
    _check_blend(full)
    _check_size(full, manifest.size.multiple, min(MAX_SIDE, manifest.size.max_side))
    check_likeness(full.likeness)
    if full.syntax not in SYNTAXES:
        raise UsageError(f"there is no prompt syntax {full.syntax!r}", f"use one of {', '.join(SYNTAXES)}")
    _check_refinement(full)
    layout, faces = normalize_layout(full.layout), normalize_layout(full.refine_faces)
    full = replace(full, layout=layout, refine_faces="" if faces == NONE else faces, mask_blur=_resolve_mask_blur(full))
    return _resolve_hires(full, manifest) if full.hires else full


def _check_refinement(request: Request) -> None:
    if not request.refine_faces:
        return
    if not 0 < request.refine_strength <= 1:
        raise out_of_range("refine_strength", request.refine_strength, 0, 1)
    if int(request.steps * request.refine_strength) < 1:
        raise UsageError(
            f"a strength of {request.refine_strength:g} leaves none of {request.steps} steps for the faces",
            "raise the strength or the number of steps",
            reason="no_refine_steps_left",
        )
    if request.mask or request.was is not None:
        problem = "drawing faces again could change what a mask keeps"
        raise UsageError(problem, "leave out the mask, or the refinement of faces", reason="refine_with_mask")


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
    if not 0 < request.threshold <= 1:
        raise out_of_range("threshold", request.threshold, 0, 1)
    if request.strength < 1 and not request.source:
        raise UsageError(
            f"strength {request.strength:g} needs an init image", "give an init image", reason="strength_without_image"
        )
    if request.skipped >= request.steps:  # int(steps * strength) is 0
        raise UsageError(
            f"strength {request.strength:g} leaves none of {request.steps} steps",
            "raise strength or steps",
            reason="no_steps_left",
        )
    if request.sampler not in SAMPLERS:
        raise unknown_sampler(request.sampler)


def _check_blend(request: Request) -> None:
    if not 0 <= request.blend <= 1:
        raise out_of_range("blend", request.blend, 0, 1)
    if request.blend and not request.toward:
        problem = f"blend {request.blend:g} needs a second prompt"
        raise UsageError(problem, "give the prompt to blend with", reason="blend_without_prompt")


def _resolve_hires(request: Request, manifest: Manifest) -> Request:
    """The request with the size of its second pass in pixels, after the second pass was checked."""
    if request.mask or request.was is not None:
        problem = "an image with a mask has no second pass"
        raise UsageError(problem, "draw first, then enlarge", reason="hires_with_mask")
    multiple, text = manifest.size.multiple, request.hires.strip().lower()
    if match := re.fullmatch(r"(\d{1,5}(?:\.\d{1,5})?)x", text):
        sides = (round(side * float(match[1]) / multiple) * multiple for side in (request.width, request.height))
        text = "x".join(map(str, sides))
    width, height = _hires_size(text)
    if width < request.width or height < request.height or (width, height) == (request.width, request.height):
        raise UsageError(
            f"the second pass, {width}x{height} pixels, is not larger than the first, {request.width}x{request.height}",
            "give a larger size",
            reason="hires_too_small",
        )
    request = replace(request, hires=text)
    resolve(second_pass(request, "0" * 64), manifest)
    return request


def _hires_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        hint = "give a factor, such as 2x, or a size, such as 1024x1024"
        raise UsageError(f"invalid size of a second pass {text!r}", hint, reason="invalid_hires")
    return int(match[1]), int(match[2])


def _resolve_mask_blur(request: Request) -> int | None:
    if request.was is not None and (request.mask or request.mask_invert):
        raise UsageError("an edit finds its own mask", "leave out the mask", reason="edit_with_mask")
    if request.was is None and not request.mask:
        if request.mask_blur is not None or request.mask_invert:
            problem = "the blur or inversion of a mask needs a mask"
            raise UsageError(problem, "give a mask", reason="mask_options_without_mask")
        return None
    if not request.source:
        raise UsageError("a mask needs an init image", "give an init image", reason="mask_without_image")
    if request.mask_blur is None:
        return max(1, min(request.width, request.height) // _BLUR_SHARE)
    if not 0 <= request.mask_blur <= MAX_MASK_BLUR:
        raise out_of_range("mask_blur", request.mask_blur, 0, MAX_MASK_BLUR)
    return request.mask_blur


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
    names[bool] = "true or false"
    return " or ".join(dict.fromkeys(names[kind] for kind in _KINDS[key] if kind in names))
