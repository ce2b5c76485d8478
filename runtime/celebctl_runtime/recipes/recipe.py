"""A recipe as it was read from an image, and the request that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from celebctl_runtime.errors import IntegrityError, InvalidInputError
from celebctl_runtime.prompting.likeness import likeness_from_json
from celebctl_runtime.prompting.weights import PLAIN
from celebctl_runtime.request import MAX_GUIDANCE, MAX_SEED, MAX_SIDE, MAX_STEPS, Request

from .sampler_names import sampler_from

MAX_TEXT = 1 << 20  # characters of a recipe of unknown origin; the longest of ours has a few thousand

RecipeFormat = Literal["celebctl", "a1111", "invokeai", "comfyui"]
#: Format -> the program that defined it, as in "a recipe of ...".
PROGRAMS: dict[RecipeFormat, str] = {
    "celebctl": "celebctl",
    "a1111": "a Stable Diffusion web UI",
    "invokeai": "InvokeAI",
    "comfyui": "ComfyUI",
}
#: Value -> smallest and largest.
_LIMITS: dict[str, tuple[int, int]] = {
    "seed": (0, MAX_SEED),
    "steps": (1, MAX_STEPS),
    "guidance": (0, MAX_GUIDANCE),
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "blend": (0, 1),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe of any of the formats.

    Attributes:
        format: "celebctl", "a1111" (the ``parameters`` text of the Stable Diffusion web UI), "invokeai" or "comfyui".
        values: Of "celebctl" the JSON form of the request. Else what was found of prompt, negative, seed, steps,
            guidance, width, height and syntax; and sampler and schedule by the names of that program.
        record: Of "celebctl" the record (model, bundle, engine, versions, digests of the people). Else what was found
            of model, model_hash and version.
        ignored: What celebctl does not reproduce, a phrase each, such as "LoRA detail".
    """

    format: RecipeFormat
    values: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ignored: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """The program that defined the format."""
        return PROGRAMS[self.format]

    def request(self, sampler: str = "") -> Request:
        """The request that draws this recipe; what the recipe does not say is left open.

        Args:
            sampler: A name in :data:`celebctl_runtime.request.SAMPLERS` in place of the recipe's.

        Raises:
            InvalidInputError: A ComfyUI workflow (reason "recipe_is_workflow"); a sampler that celebctl does not have
                ("recipe_sampler", with the values ``name`` and ``nearest``).
            IntegrityError: A number is out of range ("recipe_out_of_range").
            UsageError: ``sampler`` is unknown.
        """
        if self.format == "celebctl":
            request = Request.from_json(self.values)
            return replace(request, sampler=sampler_from(sampler)) if sampler else request
        if self.format == "comfyui":
            raise InvalidInputError(
                "a ComfyUI workflow is a graph of nodes, which celebctl does not run",
                "draw its prompt as a new image",
                reason="recipe_is_workflow",
            )
        numbers = {name: self._number(name) for name in _LIMITS if name in self.values}
        return Request(
            prompt=str(self.values.get("prompt", "")),
            negative=str(self.values.get("negative", "")),
            seed=int(numbers.get("seed", 0)),
            steps=int(numbers.get("steps", 0)),
            guidance=float(numbers["guidance"]) if "guidance" in numbers else None,
            sampler=sampler_from(sampler) if sampler else self._sampler(),
            width=int(numbers.get("width", 0)),
            height=int(numbers.get("height", 0)),
            likeness=likeness_from_json(self.values.get("likeness", 1.0)),
            layout=str(self.values.get("layout", "")),
            syntax=str(self.values.get("syntax", PLAIN)),
            toward=str(self.values.get("toward", "")),
            blend=float(numbers.get("blend", 0.0)),
        )

    def _sampler(self) -> str:
        name = str(self.values.get("sampler", ""))
        return sampler_from(name, str(self.values.get("schedule", ""))) if name else ""

    def _number(self, name: str) -> int | float:
        value, (least, most) = self.values[name], _LIMITS[name]
        if not least <= value <= most:  # true for NaN, too
            raise IntegrityError(
                f"the recipe's {name} is {str(value)[:40]}; {least} to {most} are possible",
                "generate the image with other values",
                reason="recipe_out_of_range",
                name=name,
            )
        return value
