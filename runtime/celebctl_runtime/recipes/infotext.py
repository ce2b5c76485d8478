"""The ``parameters`` text of AUTOMATIC1111's Stable Diffusion web UI, which many programs and viewers read.

The prompt; a line that begins with ``Negative prompt:``; and as the last line ``key: value`` pairs, at least three,
separated by commas. A value with a comma, colon or line break is a JSON string. Source: modules/infotext_utils.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from celebctl_runtime.prompting.likeness import FULL_LIKENESS, check_likeness, likeness_from_json, likeness_to_json
from celebctl_runtime.prompting.weights import PLAIN, SYNTAXES, WEIGHTED
from celebctl_runtime.strict_json import parse_json

from .recipe import Recipe
from .sampler_names import WEBUI

if TYPE_CHECKING:
    from celebctl_runtime.request import Request

_NEGATIVE = "Negative prompt:"
# The length of a key is bounded: without a bound, matching takes quadratic time on hostile text.
_KEY = re.compile(r"(\w[\w /-]{1,49}):\s*")
_QUOTED = re.compile(r'("(?:\\.|[^\\"])+")(?=\s*(?:,|$))')
_TAG = re.compile(r" ?<(lora|lyco|hypernet):([^<>:]{1,200})(?::[^<>]{0,50})?>", re.IGNORECASE)
_TAG_NAMES = {"lora": "LoRA", "lyco": "LyCORIS", "hypernet": "hypernetwork"}
_HASHES = re.compile(r"Hashes: \{[^{}]*\},?")  # a JSON object without quotation marks around it
_WHOLE = re.compile(r"[0-9]{1,19}")
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
#: Keys that become values or the record, or that say nothing about the image.
_USED = {
    "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model", "Version",
    "Lora hashes", "RNG", "User", "Created Date",
}  # fmt: skip
_TABLE_HASH = "Token table hash"
_OURS = {"Likeness", "Layout", "Toward", "Blend", "Syntax", "TI hashes", _TABLE_HASH}
_MAX_IGNORED = 12


def format_parameters(request: Request, record: Mapping[str, Any]) -> str:
    """The text for a resolved request and its record."""
    people = cast("Mapping[str, str]", record.get("identities", {}))
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": WEBUI.get(request.sampler, request.sampler),
        "CFG scale": f"{request.guidance or 0:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": record.get("model", ""),
        _TABLE_HASH: str(record.get("table_hash", ""))[:10],  # "Model hash" would be that of a checkpoint's file
        "Likeness": "" if request.likeness == FULL_LIKENESS else json.dumps(likeness_to_json(request.likeness)),
        "Layout": request.layout,
        "Toward": request.toward,
        "Blend": f"{request.blend:.6f}" if request.toward else "",
        "Syntax": "" if request.syntax == PLAIN else request.syntax,
        "TI hashes": ", ".join(f"{name}: {digest[:12]}" for name, digest in people.items()),
        "Version": f"celebctl {record.get('celebctl', '')}",
    }
    lines = [request.prompt]
    if request.negative:
        lines.append(f"{_NEGATIVE} {request.negative}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items() if value != ""))
    return "\n".join(lines)


def parse_parameters(text: str) -> Recipe | None:
    """The recipe in a ``parameters`` text; None when the text has no line of settings.

    Args:
        text: At most MAX_TEXT characters; takes linear time.

    Raises:
        ValueError, UsageError: A value cannot be used.

    Example:
        >>> recipe = parse_parameters("a fox\\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768")
        >>> recipe.values["prompt"], recipe.request().sampler, recipe.request().height
        ('a fox', 'euler_a', 768)
    """
    *lines, last = text.strip().split("\n")
    pairs = _pairs(_HASHES.sub("", last))
    if len(pairs) < 3 or not {"Steps", "Seed", "Sampler"} & pairs.keys():
        return None
    prompt, negative = _prompts(lines)
    tags = [(_TAG_NAMES[match[1].casefold()], match[2]) for match in _TAG.finditer(prompt + negative)]
    ours = pairs.get("Version", "").startswith("celebctl ")
    used = _USED | _OURS if ours else _USED
    ignored = [f"{kind} {name}" for kind, name in dict.fromkeys(tags)]
    ignored += [f"{key} {value[:60]}".strip() for key, value in pairs.items() if key not in used]
    if len(ignored) > _MAX_IGNORED:
        ignored[_MAX_IGNORED:] = [f"{len(ignored) - _MAX_IGNORED} more"]
    values: dict[str, Any] = {"prompt": _TAG.sub("", prompt).strip(), "negative": _TAG.sub("", negative).strip()}
    values |= {"syntax": WEIGHTED, **_numbers(pairs)}
    texts = {"Sampler": "sampler", "Schedule type": "schedule"}
    values |= {name: pairs[key] for key, name in texts.items() if key in pairs}
    if ours:
        values |= _own_values(pairs)
    names = {"Model": "model", "Model hash": "model_hash", _TABLE_HASH: "model_hash", "Version": "version"}
    return Recipe("a1111", values, {name: pairs[key] for key, name in names.items() if key in pairs}, tuple(ignored))


def _prompts(lines: list[str]) -> tuple[str, str]:
    """Prompt and negative prompt, which begins at the first line with its name."""
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            current, line = negative, line.removeprefix(_NEGATIVE).strip()
        current.append(line)
    return "\n".join(prompt), "\n".join(negative)


def _pairs(line: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    at = 0
    while key := _KEY.search(line, at):
        if quoted := _QUOTED.match(line, key.end()):
            value, at = _unquoted(quoted[1]), quoted.end()
        else:
            comma = line.find(",", key.end())
            at = len(line) if comma < 0 else comma
            value = line[key.end() : at].strip()
        pairs[key[1]] = value
    return pairs


def _numbers(pairs: Mapping[str, str]) -> dict[str, int | float]:
    numbers: dict[str, int | float] = {}
    for key, name in (("Steps", "steps"), ("Seed", "seed")):
        if key in pairs:
            if not _WHOLE.fullmatch(pairs[key]):
                raise ValueError(f"{key} is {pairs[key][:40]!r}")
            numbers[name] = int(pairs[key])
    if "CFG scale" in pairs:
        if not _DECIMAL.fullmatch(pairs["CFG scale"]):
            raise ValueError(f"CFG scale is {pairs['CFG scale'][:40]!r}")
        numbers["guidance"] = float(pairs["CFG scale"])
    if "Size" in pairs:
        size = _SIZE.fullmatch(pairs["Size"])
        if size is None:
            raise ValueError(f"Size is {pairs['Size'][:40]!r}")
        numbers["width"], numbers["height"] = int(size[1]), int(size[2])
    return numbers


def _own_values(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Values that only celebctl writes."""
    names = {"Layout": "layout", "Toward": "toward"}
    values: dict[str, Any] = {name: pairs[key] for key, name in names.items() if key in pairs}
    values["syntax"] = pairs.get("Syntax", PLAIN)
    if values["syntax"] not in SYNTAXES:
        raise ValueError(f"Syntax is {pairs['Syntax'][:40]!r}")
    if "Blend" in pairs:
        if not _DECIMAL.fullmatch(pairs["Blend"]):
            raise ValueError(f"Blend is {pairs['Blend'][:40]!r}")
        values["blend"] = float(pairs["Blend"])
    if "Likeness" in pairs:
        values["likeness"] = parse_json(pairs["Likeness"])
        check_likeness(likeness_from_json(values["likeness"]))
    return values


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _unquoted(value: str) -> str:
    try:
        text = parse_json(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
