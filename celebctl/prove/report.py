"""The page of a run: self-contained HTML (template: prove.html.j2)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_METRICS = {
    "identity_similarity": "identity similarity",
    "likeness": "likeness",
    "prompt_fidelity": "prompt fidelity",
    "detection_rate": "faces found",
    "identity_assignment": "both people assigned",
    "identity_leakage": "identity leakage",
    "pair_likeness": "likeness in pairs",
}
_DEVICES = {"cpu": "ONNX Runtime, CPU", "cuda": "ONNX Runtime, CUDA", "trt": "TensorRT"}


def render(document: Mapping[str, Any], images: Path) -> str:
    """The page as HTML.

    Args:
        document: As run.py describes it; any stage may be missing.
        images: Folder of the JPEG files that the document names.
    """
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    def picture(name: str) -> str:
        return base64.b64encode((images / name).read_bytes()).decode()

    folder = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader([folder, folder.parent / "evaluation"]), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=ChainableUndefined,
    )  # fmt: skip
    results = {name: entry.get("result", {}) for name, entry in document["stages"].items()}
    return templates.get_template("prove.html.j2").render(
        settings=document["settings"], stages=document["stages"], r=results, metrics=_METRICS, devices=_DEVICES,
        picture=picture,
    )  # fmt: skip
