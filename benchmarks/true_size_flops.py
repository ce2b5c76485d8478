"""Operations and memory of learning on the true Stable Diffusion 1.5, counted, and what a GPU would make of them.

Counted on networks that have shapes and no numbers: operations by torch.utils.flop_counter (a multiply-add is two;
matrix products and convolutions only), memory by celebctl's own estimate. What a GPU makes of its peak is an
assumption, and said to be one.
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
from benchmarks.true_size_shapes import unet as unet_of

VIEWS = 800  # of the published setting: 400 steps of 2
KEPT, LOOKS, LOOK_STEPS = 48, 4, 15  # views encoded once; drawn looks at the person on the way, and their steps
#: Dense bfloat16 peak in operations per second by NVIDIA's data sheets (SXM), and the share assumed to be reached.
PEAKS = {"H100": 989.4e12, "H200": 989.4e12}
UTILISATION = 0.35
SHAPES = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl", "sd3": "sd35-medium"}  # the shapes that stand for a family


def count_operations() -> dict[str, float]:
    """Operations per sample, at 512 px, by what is done."""
    from diffusers.models.attention_processor import AttnProcessor

    with FakeTensorMode():
        network, autoencoder, texts = unet(), vae(), text_encoder()
        for one in (network, autoencoder, texts):
            one.requires_grad_(False)
        network.set_attn_processor(AttnProcessor())  # plain products, which the counter knows on every device
        latent, pixels = torch.empty(1, 4, 64, 64), torch.empty(1, 3, 512, 512)
        time, ids = torch.zeros((), dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
        context = torch.empty(1, 77, 768, requires_grad=True)

        def predict() -> Any:
            return network(latent, time, encoder_hidden_states=context, return_dict=False)[0]

        def read() -> Any:
            rows = texts.get_input_embeddings()

            def as_learned(_module: Any, _given: Any, made: Any) -> Any:
                return made.clone().requires_grad_(True)

            handle = rows.register_forward_hook(as_learned)
            try:
                return texts(input_ids=ids).last_hidden_state
            finally:
                handle.remove()

        with torch.no_grad():
            counted = {
                "unet_forward": _operations(predict),
                "text_encoder_forward": _operations(read),
                "vae_encode": _operations(lambda: autoencoder.encode(pixels)),
                "vae_decode": _operations(lambda: autoencoder.decode(latent)),
            }
        counted["unet_forward_backward"] = _operations(lambda: predict().sum().backward())
        counted["text_encoder_forward_backward"] = _operations(lambda: read().sum().backward())
    return counted


def predict_times(counted: dict[str, float]) -> dict[str, Any]:
    """Seconds of `VIEWS` sample views on each GPU at `UTILISATION` of its peak, and at all of it (the floor)."""
    view = counted["unet_forward_backward"] + counted["text_encoder_forward_backward"]
    look = LOOK_STEPS * 2 * counted["unet_forward"] + counted["vae_decode"]
    parts = {"views": VIEWS * view, "encoding": KEPT * counted["vae_encode"], "looks": LOOKS * look}
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
    """Bytes that `celebctl learn` foretells in bfloat16 for each known model, with two views a step as the release
    learns, four as `clean` does, and with --low-memory; of which `weights` are the networks.

    What torch and CUDA take for themselves comes on top.
    """
    from celebctl.learning.device import estimate_memory
    from celebctl_models.checkpoints.known_models import KNOWN

    found: dict[str, Any] = {"predicted": True, "dtype": "bfloat16"}
    views = {"two_views": (2, False), "four_views": (4, False), "low_memory": (1, True)}
    for name, row in KNOWN.items():
        if row.bundled:
            continue
        parts = _parts_of(SHAPES[row.family], row.native_size)
        told = {way: estimate_memory(parts, count, checkpointing=low) for way, (count, low) in views.items()}
        sizes = {"weights_bytes": told["low_memory"].weights, "picture_bytes": told["low_memory"].image}
        found[name] = {**sizes, **{f"{way}_bytes": one.total for way, one in told.items()}}
    return found


def _parts_of(family: str, native_size: int) -> Any:
    """A family's networks for pictures of this side: shapes and no numbers, UNet and autoencoder in bfloat16, texts in
    float32."""
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.checkpoints.registry import derive_card

    if family == "sd35-medium":
        return true_size_sd3.parts_without_weights()
    with FakeTensorMode():
        texts = (text_encoder(),) if family == "sd15" else text_encoders(family)
        torch.set_default_dtype(torch.bfloat16)  # tensors without numbers cannot be converted
        try:
            network, autoencoder = unet() if family == "sd15" else unet_of(family), vae()
        finally:
            torch.set_default_dtype(torch.float32)
    configs = {"denoiser": dict(network.config), "vae": dict(autoencoder.config)}
    card = derive_card(family, family, **configs, text_encoders=len(texts))
    return DiffusionParts(Path(), (), replace(card, native_size=native_size), texts, network, autoencoder, {})


def _operations(run: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
