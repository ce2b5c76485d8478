"""Does the step graph of Stable Diffusion 3.5 medium hold at its true size? Random weights, each stage below 10 GB.

    python -m benchmarks.true_size_sd3 FOLDER --stage export        # the transformer in float16 to FOLDER/step.onnx
    python -m benchmarks.true_size_sd3 FOLDER --stage reference     # torch in float32 on the same weights
    python -m benchmarks.true_size_sd3 FOLDER --stage compare       # ONNX Runtime on the CPU

A whole export takes more: its float32 reference alone has 9.9 GB of weights. Here torch converts one layer at a time,
and ONNX Runtime keeps the weights as they are in the file, without folding their conversion to float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.true_size_shapes import text_encoders
from celebctl_export.graphs import GraphSpec, Size, StepGraph, graph_makers
from celebctl_export.parity import TOLERANCES, compare
from celebctl_export.to_onnx import save_graph, to_onnx
from celebctl_models.checkpoints.diffusion import StableDiffusion3Parts
from celebctl_models.checkpoints.registry import ModelCard

#: Bytes of the published transformer/diffusion_pytorch_model.safetensors, rounded as its page shows them.
PUBLISHED_BYTES = 4.94e9
TRANSFORMER: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
STEP = 2  # of the graphs, after two text encoders
SIZE = Size(batch=1, h=32, w=32)  # 256 px, with guidance


def transformer() -> Any:
    """The network in float16, always with the same weights."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    torch.set_default_dtype(torch.float16)
    try:
        made = cast(Any, SD3Transformer2DModel)(**TRANSFORMER).half()
    finally:
        torch.set_default_dtype(torch.float32)
    size = sum(2 * tensor.numel() for tensor in (*made.parameters(), *made.buffers()))
    if abs(size - PUBLISHED_BYTES) > 5e6:
        raise ValueError(f"the transformer has {size:,} bytes, the published one {PUBLISHED_BYTES:,.0f}")
    return made.eval().requires_grad_(False)


def parts_with(made: Any) -> StableDiffusion3Parts:
    """The model with this transformer; text encoders and autoencoder have shapes and no data."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModelWithProjection

    with torch.device("meta"):
        first, second = text_encoders("sdxl")
        encoders = (cast(Any, CLIPTextModelWithProjection)(first.config), second)
        vae = cast(Any, AutoencoderKL)(**VAE).to(made.dtype)
    card = ModelCard("sd35-medium", "sd3", "random weights", "none", 1024)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    return StableDiffusion3Parts(Path(), (), card, encoders, made, vae, scheduler)


def step_spec(made: Any) -> GraphSpec:
    """The step graph."""
    return graph_makers(parts_with(made))[STEP](torch.float16)


def parts_without_weights() -> StableDiffusion3Parts:
    """The whole model in bfloat16, to predict the memory of learning: shapes and no data."""
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    with torch.device("meta"):
        made = cast(Any, SD3Transformer2DModel)(**TRANSFORMER).to(torch.bfloat16)
    return parts_with(made)


def _to_float32(layer: nn.Module, _: Any) -> None:
    layer.float()


def _to_float16(layer: nn.Module, _: Any, __: Any) -> None:
    layer.half()


class Upcast(nn.Module):
    """A float16 network that computes in float32, with the weights of one layer converted at a time."""

    dtype = torch.float32

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        for layer in network.modules():
            if next(layer.parameters(recurse=False), None) is not None:
                layer.register_forward_pre_hook(_to_float32)
                layer.register_forward_hook(_to_float16)

    def forward(self, **inputs: Any) -> Any:
        return self.network(**inputs)


def export(folder: Path) -> dict[str, Any]:
    """Write FOLDER/step.onnx and FOLDER/step.data."""
    model = to_onnx(step_spec(transformer()), 2, 4096 // 16)
    save_graph(model, folder / "step.onnx", folder / "step.data")
    kinds = [node.op_type for node in model.graph]
    return {"nodes": len(kinds), "attention": kinds.count("Attention"), "bytes": (folder / "step.data").stat().st_size}


def reference(folder: Path) -> dict[str, Any]:
    """Write FOLDER/reference.npz: inputs and torch's outputs."""
    made = transformer()
    inputs = step_spec(made).make_inputs(SIZE)
    with torch.no_grad():
        state, _ = StepGraph(Upcast(made))(**inputs)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()}
    np.savez(folder / "reference.npz", next_state=state.numpy(), **arrays)
    return {"largest_value": float(state.abs().max())}


def compare_runtime(folder: Path) -> dict[str, Any]:
    """The error of the exported graph."""
    import onnxruntime

    ort = cast(Any, onnxruntime)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(folder / "step.onnx"), options, providers=["CPUExecutionProvider"])
    saved = dict(np.load(folder / "reference.npz"))
    expected = saved.pop("next_state")
    (state,) = session.run(["next_state"], saved)
    row = compare("step", "next_state", state, expected, TOLERANCES["fp16"])
    return {"max_abs_error": row.max_abs_error, "largest_value": row.largest_value, "passed": row.passed}


STAGES = {"export": export, "reference": reference, "compare": compare_runtime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=[*STAGES], required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    figures = STAGES[args.stage](args.folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**figures, "seconds": round(time.monotonic() - started), "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
