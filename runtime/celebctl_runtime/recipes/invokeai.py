"""InvokeAI's metadata: the chunk ``invokeai_metadata`` (since version 3), and the older ``sd-metadata`` and ``Dream``.

Source: invokeai/app/invocations/metadata.py (core_metadata). Fields may be missing or null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from celebctl_runtime.strict_json import parse_json

from .recipe import Recipe
from .sampler_names import INVOKEAI

if TYPE_CHECKING:
    from celebctl_runtime.request import Request

#: Our families -> InvokeAI's base models (invokeai/backend/model_manager/taxonomy.py).
_BASES = {"sd1": "sd-1", "sd2": "sd-2", "sdxl": "sdxl", "sd3": "sd-3"}
_TEXTS = {"positive_prompt": "prompt", "negative_prompt": "negative", "scheduler": "sampler"}
_NUMBERS = {"seed": "seed", "steps": "steps", "cfg_scale": "guidance", "width": "width", "height": "height"}
#: Fields that change the image in ways that celebctl does not reproduce.
_IGNORED = {
    "loras": "LoRAs",
    "controlnets": "ControlNets",
    "ipAdapters": "IP adapters",
    "t2iAdapters": "T2I adapters",
    "refiner_model": "the refiner",
    "vae": "the VAE",
    "hrf_enabled": "the high resolution fix",
    "seamless_x": "seamless tiling",
    "seamless_y": "seamless tiling",
    "clip_skip": "CLIP skip",
    "cfg_rescale_multiplier": "CFG rescale",
    "positive_style_prompt": "the style prompt",
    "init_image": "the initial image",
}
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_DREAM_OPTION = re.compile(r"(?:^|\s)-([A-Za-z])\s*([^\s-]\S{0,99})")
_DREAM_NUMBERS = {"s": "steps", "S": "seed", "W": "width", "H": "height"}


def format_metadata(request: Request, record: Mapping[str, Any]) -> str:
    """The JSON of ``invokeai_metadata`` for a resolved request and its record."""
    model = {"key": "", "hash": "", "name": record.get("model", ""), "type": "main"}
    model |= {"base": _BASES.get(str(record.get("family", "")), "any")}
    model |= {"model_name": record.get("model", "")}  # as version 3 calls it
    return json.dumps({
        "app_version": f"celebctl {record.get('celebctl', '')}",
        "generation_mode": "img2img" if request.source else "txt2img",
        "positive_prompt": request.prompt,
        "negative_prompt": request.negative,
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "cfg_scale": request.guidance,
        "steps": request.steps,
        "scheduler": INVOKEAI.get(request.sampler, request.sampler),
        "model": model,
    })  # fmt: skip


def parse_metadata(text: str) -> Recipe:
    """The recipe in ``invokeai_metadata``. Raises ValueError.

    Example:
        >>> recipe = parse_metadata('{"positive_prompt": "a fox", "seed": 5, "scheduler": "euler_a", "loras": [1]}')
        >>> recipe.request().sampler, recipe.ignored
        ('euler_a', ('LoRAs',))
    """
    data = _object(parse_json(text))
    values = _values(data)
    model = data.get("model")
    record: dict[str, Any] = {}
    if isinstance(model, dict):
        named = cast("dict[str, Any]", model)
        record["model"] = str(named.get("name") or named.get("model_name") or "")
    if "app_version" in data:
        record["version"] = str(data["app_version"])
    ignored = [phrase for field, phrase in _IGNORED.items() if data.get(field)]
    mode = data.get("generation_mode")
    if isinstance(mode, str) and "txt2img" not in mode:
        ignored.append(f"the mode {mode[:40]}")
    return Recipe("invokeai", values, record, tuple(dict.fromkeys(ignored)))


def parse_sd_metadata(text: str) -> Recipe:
    """The recipe in ``sd-metadata`` (InvokeAI 2). Raises ValueError."""
    data = _object(parse_json(text))
    image = _object(data.get("image"))
    values = _values(image | {"scheduler": image.get("sampler")})
    prompts = image.get("prompt")
    parts = cast("list[object]", prompts if isinstance(prompts, list) else [prompts])
    texts = [part if isinstance(part, str) else _object(part).get("prompt", "") for part in parts]
    values |= _split_negative(" ".join(str(text) for text in texts))
    record = {"model": str(data.get("model_weights") or ""), "model_hash": str(data.get("model_hash") or "")}
    return Recipe("invokeai", values, record)


def parse_dream(text: str) -> Recipe:
    """The recipe in ``Dream``: the prompt in quotation marks and the options of a command. Raises ValueError."""
    end = text.rfind('"')
    if not text.startswith('"') or end < 1:
        raise ValueError("the prompt is not in quotation marks")
    values: dict[str, Any] = dict(_split_negative(text[1:end]))
    for option in _DREAM_OPTION.finditer(text, end + 1):
        name, value = option.groups()
        if name in _DREAM_NUMBERS and re.fullmatch(r"[0-9]{1,19}", value):
            values[_DREAM_NUMBERS[name]] = int(value)
        elif name == "C" and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", value):
            values["guidance"] = float(value)
        elif name == "A":
            values["sampler"] = value
    return Recipe("invokeai", values)


def _values(data: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, name in _TEXTS.items():
        value = data.get(field)
        if value is not None:
            if not isinstance(value, str):
                raise ValueError(f"{field} is not a text")
            values[name] = value
    for field, name in _NUMBERS.items():
        value = data.get(field)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int if name != "guidance" else int | float):
                raise ValueError(f"{field} is not a number that can be used")
            values[name] = value
    return values


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")
    return cast("dict[str, Any]", value)


def _split_negative(text: str) -> dict[str, str]:
    """In older versions the negative prompt stands in brackets."""
    negative = ", ".join(match[1].strip() for match in _BRACKETS.finditer(text))
    return {"prompt": _BRACKETS.sub("", text).strip(), "negative": negative}
