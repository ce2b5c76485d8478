"""Half precision on the CPU against float32, graph by graph, for every family: the same weights and the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_fakes import lcm, sd1, sd2, sd_turbo, xl, xl_turbo, xl_v
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from celebctl_export import ExportOptions, export_bundle
from celebctl_export.cuda_kernels import nodes_without_kernel
from celebctl_export.parity import TOLERANCES
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_runtime.backends.base import Conditioning
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.sampling.samplers import step_table

EVERY_TIME = (sd2,)
CASES = [
    pytest.param(write, id=write.__name__, marks=() if write in EVERY_TIME else pytest.mark.slow)
    for write in (sd1, sd2, sd_turbo, lcm, xl, xl_v, xl_turbo)
]


@pytest.mark.parametrize("write", CASES)
def test_every_graph_computes_what_it_does_in_single_precision(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model")
    parts = load_parts(tmp_path / "model")
    half, single = (
        export_bundle(parts, [], tmp_path / dtype, ExportOptions(dtype=dtype)) for dtype in ("fp16", "fp32")
    )
    context, pooled = OrtBackend(single, "cpu", 1).encode(prompts(single))
    compared: set[str] = set()
    for plain in (False, True):
        actual, expected = (
            dict(outputs(OrtBackend(bundle, "cpu", 1, plain_graphs=plain), bundle, context, pooled))
            for bundle in (half, single)
        )
        for name, wanted in expected.items():
            error = float(np.abs(actual[name].astype(np.float64) - wanted).max())
            assert 0 < error < TOLERANCES["fp16"] * max(1.0, float(np.abs(wanted).max())), name
        compared |= actual.keys()
    assert compared >= {"context", "step without guidance", "image", "latent"}
    graphs = (*half.manifest.graphs.values(), *half.manifest.ort_graphs.values())
    without = [node for file in {info.file for info in graphs} for node in nodes_without_kernel(half.file(file))]
    # The end of a prompt, found among 77 integers; text encoders are not captured.
    assert [node for node in without if "ArgMax" not in node] == [] and len(without) <= 2


def prompts(bundle: Bundle) -> NDArray[np.int64]:
    return np.stack([bundle.tokenizer().encode(text, {}).ids for text in ("", "a person playing chess")])


def outputs(backend: OrtBackend, bundle: Bundle, context: Any, pooled: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each graph's output for inputs that do not depend on the bundle's dtype."""
    own = backend.encode(prompts(bundle))
    yield "context", own[0]
    if own[1] is not None:
        yield "pooled", own[1]
    size, random = bundle.manifest.size, np.random.default_rng(0)
    height, width = size.native[0] // size.vae_factor, size.native[1] // size.vae_factor
    state = random.standard_normal((2, 1, size.latent_channels, height, width), dtype=np.float32)
    size_ids = None if pooled is None else np.array([*size.native, 0, 0, *size.native], np.float32)
    for guides in (1,) if bundle.manifest.guidance_is_embedded else (1, 2):
        texts = Conditioning(context[-guides:, None], None if pooled is None else pooled[-guides:, None], size_ids)
        table = step_table("euler", bundle.schedule, 4, 5.0)
        name = "step without guidance" if guides == 1 else "step with guidance"
        yield name, backend.step(state, 1, state[1], texts, table)
    yield "image", backend.decode(state[0])
    yield "latent", backend.encode_image(random.uniform(-1, 1, (1, 3, *size.native)).astype(np.float32))
