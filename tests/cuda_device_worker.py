"""Work on the CUDA device for tests, in a process of its own: ``draw BUNDLE DEVICE [plain] [OPTION=VALUE]...`` draws
with a bundle, ``place GRAPH...`` only opens graphs. Either says which provider has which nodes, as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from PIL import Image

from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.ort_session import CPU, CUDA
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.init_image import InitImage

ort: Any = onnxruntime
onnx_files: Any = onnx  # whose functions are typed in part only
Session: Any = ort.InferenceSession
ort.set_default_logger_severity(4)
graphs: dict[str, dict[str, Any]] = {}  # by file name: the session that was opened last


class Recording(Session):
    """A session that leaves its optimized graph beside, and its nodes' providers in :data:`graphs`."""

    def __init__(self, path: str, options: Any, **more: Any) -> None:
        name, optimized = Path(path).name, Path(f"optimized-{Path(path).name}").absolute()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.optimized_model_filepath = str(optimized)
        Session.__init__(self, path, options, **more)
        providers: dict[str, Counter[str]] = {}
        for part in self.get_provider_graph_assignment_info():
            found = providers.setdefault(part.ep_name.removesuffix("ExecutionProvider"), Counter())
            found.update(node.op_type for node in part.get_nodes())
        copies = sum(
            node.op_type.startswith("Memcpy")
            for node in nodes_of(onnx_files.load(optimized, load_external_data=False).graph)
        )
        graphs[name] = {"providers": providers, "copies": copies, "options": self.get_provider_options()}


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def place(*paths: str) -> None:
    """Open graphs with the provider's own options."""
    for path in paths:
        Recording(path, ort.SessionOptions(), providers=[CUDA, CPU], enable_fallback=0)
    print(json.dumps({"graphs": graphs}))


def draw(path: str, device: str, *words: str) -> None:
    """Images of two sizes, several at once, from an image, with noise in each step and without guidance."""
    options = dict(word.split("=") for word in words if "=" in word)
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())
    logging.getLogger("celebctl_runtime").addHandler(handler)
    ort.InferenceSession = Recording
    bundle = Bundle.open(Path(path))
    side = bundle.manifest.size.native[0]
    init = InitImage(Image.new("RGB", (side, side), "grey"), "0" * 64)
    requests = [
        *(Request("a person", seed=seed, steps=5) for seed in (1, 2)),
        Request("a person", seed=1, steps=3, sampler="euler_a"),
        Request("a person", seed=1, steps=4, width=side + side // 2),
        Request("a person", seed=1, steps=3, guidance=1.0),
        Request("a person", seed=1, steps=4, source=init.digest, strength=0.8),
        Request("a person", seed=3, steps=5),
    ]
    backend = OrtBackend(bundle, device, cuda_options=options, plain_graphs="plain" in words)
    try:
        images = generate(bundle, backend, requests, init_images=[init])
        answer: dict[str, Any] = {"images": len(images)}
    except CelebctlError as error:
        answer = {"exit_code": error.exit_code, "reason": error.reason, "problem": error.problem, "hint": error.hint}
    print(json.dumps({**answer, "graphs": graphs, "notes": notes, "backend": backend.describe()}))


if __name__ == "__main__":
    {"draw": draw, "place": place}[sys.argv[1]](*sys.argv[2:])
