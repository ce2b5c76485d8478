"""ComfyUI's graphs: the prompts that can be found in them. The graph itself is a program and is not run.

Images of ComfyUI have the graph that ran in the text chunk ``prompt``: node number -> ``class_type`` and ``inputs``,
where a link is ``[node number, output number]``. Source: the SaveImage node in nodes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from celebctl_runtime.strict_json import parse_json

from .recipe import Recipe

_TEXT_INPUTS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl")
_MAX_TEXTS = 20


def parse_prompt_graph(text: str) -> Recipe | None:
    """The prompts in the chunk ``prompt``: those that a sampler takes, else all. Raises ValueError.

    None when it is no JSON object: other programs store the plain prompt under this keyword.

    Example:
        >>> graph = '{"3": {"inputs": {"positive": ["6", 0]}}, "6": {"inputs": {"text": "a fox"}}}'
        >>> dict(parse_prompt_graph(graph).values)
        {'prompt': 'a fox', 'nodes': 2}
    """
    if not text.lstrip().startswith("{"):
        return None
    graph = cast("dict[str, Any]", parse_json(text))
    nodes = {key: _inputs(node) for key, node in graph.items()}
    values: dict[str, Any] = {}
    for inputs in nodes.values():
        for name, ours in (("positive", "prompt"), ("negative", "negative")):
            if (found := _texts(nodes.get(_linked(inputs.get(name)), {}))) and ours not in values:
                values[ours] = "\n".join(found)
    if "prompt" not in values:
        every = [found for inputs in nodes.values() for found in _texts(inputs)]
        if every:
            values["prompt"] = "\n".join(every[:_MAX_TEXTS])
    return Recipe("comfyui", values | {"nodes": len(nodes)})


def _inputs(node: object) -> Mapping[str, Any]:
    inputs = cast("dict[str, Any]", node).get("inputs") if isinstance(node, dict) else None
    return cast("dict[str, Any]", inputs) if isinstance(inputs, dict) else {}


def _linked(value: object) -> str:
    """The number of the node that an input is linked to, or ""."""
    link = cast("list[object]", value) if isinstance(value, list) else []
    return str(link[0]) if link else ""


def _texts(inputs: Mapping[str, Any]) -> list[str]:
    texts = [inputs[name] for name in _TEXT_INPUTS if isinstance(inputs.get(name), str)]
    return list(dict.fromkeys(text for text in texts if text.strip()))
