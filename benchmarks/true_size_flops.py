"""Counted operations and memory of learning on the true Stable Diffusion 1.5, and predicted times on GPUs.

The networks are fake tensors, which have shapes and no data. Operations are counted by torch.utils.flop_counter (a
multiply-add is two; matrix products and convolutions only), memory by celebctl's own estimate. The share of a GPU's
peak that is reached is an assumption; the results say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import true_size_sd3
from benchmarks.true_size_model import text_encoder, unet, vae
from benchmarks.true_size_shapes import text_encoders
from benchmarks.true_size_shapes import unet as unet_of_family

VIEWS = 800  # of the published settings: 400 steps of 2
CACHED_VIEWS, EVALUATIONS, EVALUATION_STEPS = 48, 4, 15  # views encoded once; generated evaluations and their steps
#: Dense bfloat16 peak in operations per second (NVIDIA data sheets, SXM), and the share of it that is assumed.
PEAKS = {"H100": 989.4e12, "H200": 989.4e12}
UTILISATION = 0.35
SHAPES = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl", "sd3": "sd35-medium"}  # model family -> its shapes here


def count_operations() -> dict[str, float]:
    """Operations per sample at 512 px of each network."""
    from diffusers.models.attention_processor import AttnProcessor

    with FakeTensorMode():
        network, autoencoder, texts = unet(), vae(), text_encoder()
        for one in (network, autoencoder, texts):
            one.requires_grad_(False)
        network.set_attn_processor(AttnProcessor())  # plain matrix products, which the counter supports on every device
        latent, pixels = torch.empty(1, 4, 64, 64), torch.empty(1, 3, 512, 512)
        time, ids = torch.zeros((), dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
        context = torch.empty(1, 77, 768, requires_grad=True)

        def predict() -> Any:
            return network(latent, time, encoder_hidden_states=context, return_dict=False)[0]

        def encode_text() -> Any:
            def require_grad(_module: Any, _inputs: Any, output: Any) -> Any:
                return output.clone().requires_grad_(True)

            handle = texts.get_input_embeddings().register_forward_hook(require_grad)
            try:
                return texts(input_ids=ids).last_hidden_state
            finally:
                handle.remove()

        with torch.no_grad():
            operations = {
                "unet_forward": _operations(predict),
                "text_encoder_forward": _operations(encode_text),
                "vae_encode": _operations(lambda: autoencoder.encode(pixels)),
                "vae_decode": _operations(lambda: autoencoder.decode(latent)),
            }
        operations["unet_forward_backward"] = _operations(lambda: predict().sum().backward())
        operations["text_encoder_forward_backward"] = _operations(lambda: encode_text().sum().backward())
    return operations


def predict_times(operations: dict[str, float]) -> dict[str, Any]:
    """Seconds of ``VIEWS`` views on each GPU at ``UTILISATION`` of its peak, and at the peak (the floor)."""
    view = operations["unet_forward_backward"] + operations["text_encoder_forward_backward"]
    evaluation = EVALUATION_STEPS * 2 * operations["unet_forward"] + operations["vae_decode"]
    parts = {
        "views": VIEWS * view,
        "encoding": CACHED_VIEWS * operations["vae_encode"],
        "evaluations": EVALUATIONS * evaluation,
    }
    total = sum(parts.values())
    return {
        "predicted": True,
        "sample_views": VIEWS,
        "operations": parts,
        "assumed_utilisation": UTILISATION,
        "seconds": {
            name: {
                "dense_bf16_peak": peak,
                "floor_views_only": round(parts["views"] / peak, 2),
                "predicted_views_only": round(parts["views"] / peak / UTILISATION, 2),
                "predicted_all": round(total / peak / UTILISATION, 2),
            }
            for name, peak in PEAKS.items()
        },
    }


def predict_memory() -> dict[str, Any]:
    """Bytes that `celebctl learn` estimates in bfloat16 for each known model.

    With two views per step (the release), four (`clean`), and with --low-memory; ``weights`` is the networks' part. The
    memory of torch and CUDA themselves is not included.
    """
    from celebctl.learning.device import estimate_memory
    from celebctl_models.checkpoints.known_models import KNOWN

    memory: dict[str, Any] = {"predicted": True, "dtype": "bfloat16"}
    modes = {"two_views": (2, False), "four_views": (4, False), "low_memory": (1, True)}
    for name, row in KNOWN.items():
        if row.bundled:
            continue
        parts = _parts_of(SHAPES[row.family], row.native_size)
        estimates = {mode: estimate_memory(parts, views, checkpointing=low) for mode, (views, low) in modes.items()}
        sizes = {"weights_bytes": estimates["low_memory"].weights, "picture_bytes": estimates["low_memory"].image}
        memory[name] = {**sizes, **{f"{mode}_bytes": one.total for mode, one in estimates.items()}}
    return memory


def _parts_of(family: str, native_size: int) -> Any:
    """A family's networks without data for images of this side; UNet and VAE in bfloat16, text encoders in float32."""
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.checkpoints.registry import derive_card

    if family == "sd35-medium":
        return true_size_sd3.parts_without_weights()
    with FakeTensorMode():
        texts = (text_encoder(),) if family == "sd15" else text_encoders(family)
        torch.set_default_dtype(torch.bfloat16)  # fake tensors cannot be converted
        try:
            network, autoencoder = unet() if family == "sd15" else unet_of_family(family), vae()
        finally:
            torch.set_default_dtype(torch.float32)
    configs = {"denoiser": dict(network.config), "vae": dict(autoencoder.config)}
    card = derive_card(family, family, **configs, text_encoders=len(texts))
    return DiffusionParts(Path(), (), replace(card, native_size=native_size), texts, network, autoencoder, {})


def _operations(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
