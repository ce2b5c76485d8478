"""Stable Diffusion at its true size with random weights: published shapes, vocabulary size and file sizes.

    python -m benchmarks.true_size_model FOLDER                      # 1.5
    python -m benchmarks.true_size_model FOLDER --family sdxl        # or sd21

The networks have the published configurations; their numbers of parameters are checked. Weights are written in float16:
2.1, 2.6 and 6.9 GB. The tokenizer is a byte-pair encoding with CLIP's layout and size; its merges were learned on our
list of well-known people, so that the model has a celeb basis of 512 components.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch

from benchmarks.true_size_shapes import UNET_PARAMETERS, text_encoders
from benchmarks.true_size_shapes import unet as unet_of_family
from celebctl_models.names import WELL_KNOWN

#: Parameters of the published checkpoints, by folder.
PARAMETERS = {
    "sd15": {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863},
    "sd21": {"text_encoder": 340_387_840, "unet": UNET_PARAMETERS["sd21"], "vae": 83_653_863},
    "sdxl": {
        "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "unet": UNET_PARAMETERS["sdxl"], "vae": 83_653_863
    },
}  # fmt: skip
NATIVE = {"sd15": 512, "sd21": 768, "sdxl": 1024}
VOCABULARY = 49_408  # 256 bytes, 256 bytes at a word's end, 48,894 merges, start and end
_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
_WORDS = "a photo portrait close-up picture good of person and playing chess alice bob".split()
_SCHEDULER = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip


def _index(family: str) -> dict[str, Any]:
    parts = {
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    if family == "sdxl":
        two = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": parts["tokenizer"]}
        kind: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
        return kind | parts | two | {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    none = {key: [None, None] for key in ("feature_extractor", "safety_checker")}
    return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts, **none}


def _scheduler(family: str) -> dict[str, Any]:
    config = dict(_SCHEDULER)
    if family == "sd21":
        config["prediction_type"] = "v_prediction"
    if family == "sdxl":
        config |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    return config


def unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return cast(Any, UNet2DConditionModel)(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8,
        cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def vae(family: str = "sd15") -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return cast(Any, AutoencoderKL)(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215, force_upcast=family == "sdxl",
    )  # fmt: skip


def text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
        bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    return cast(Any, CLIPTextModel)(config)


def tokenizer() -> Any:
    """A CLIPTokenizer of CLIP's size in which every plain word of our list of names is one token."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    listed = " ".join(line for line in WELL_KNOWN.read_text("utf-8").splitlines() if line[:1] != "#").lower().split()
    words = sorted({word for word in [*listed, *_WORDS] if word.isascii() and word.isalpha()})
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(words, trainer)
    merges = [(str(a), str(b)) for a, b in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)])
    # Pairs of bytes fill the vocabulary. They come last, so they never split a listed word.
    for pair in ((a, b) for a in letters for b in letters):
        if len(tokens) == VOCABULARY - len(_SPECIAL):
            break
        if pair[0] + pair[1] not in tokens:
            tokens[pair[0] + pair[1]] = None
            merges.append(pair)
    vocabulary = {token: number for number, token in enumerate([*tokens, *_SPECIAL])}
    return cast(Any, CLIPTokenizer)(vocab=vocabulary, merges=merges, model_max_length=77)


def networks(family: str) -> dict[str, Callable[[], Any]]:
    """The constructor of each network of a family, by folder."""
    if family == "sd15":
        return {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    encoders: dict[str, Callable[[], Any]] = {"text_encoder": lambda: text_encoders(family)[0]}
    if family == "sdxl":
        encoders["text_encoder_2"] = lambda: text_encoders(family)[1]
    return {**encoders, "unet": lambda: unet_of_family(family), "vae": lambda: vae(family)}


def publish_names(path: Path) -> None:
    """Give a text encoder's tensors the names of the published checkpoints, which transformers 5 writes shortened.

    transformers reads both; stable-diffusion.cpp knows a model by the published ones.
    """
    tensors: dict[str, Any] = cast(Any, safetensors.torch).load_file(path)
    known = ("text_model.", "text_projection.")
    renamed = {key if key.startswith(known) else f"text_model.{key}": tensor for key, tensor in tensors.items()}
    cast(Any, safetensors.torch).save_file(renamed, path, metadata={"format": "pt"})


def write_model(folder: Path, native_size: int = 0, seed: int = 0, family: str = "sd15") -> None:
    """Write the pipeline folder, one network after the other, so that memory holds only the largest.

    Args:
        native_size: Side in pixels for the model card; 0 for that of the family.
    """
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    torch.set_default_dtype(torch.float16)
    try:
        for name, build in networks(family).items():
            network, published = build(), PARAMETERS[family][name]
            count = sum(weight.numel() for weight in network.parameters())
            if count != published:
                raise ValueError(f"{name} has {count:,} parameters, the published one {published:,}")
            network.save_pretrained(str(folder / name), max_shard_size="100GB")
            if name.startswith("text_encoder"):
                publish_names(folder / name / "model.safetensors")
            del network
    finally:
        torch.set_default_dtype(torch.float32)
    clip_tokenizer = tokenizer()
    for name in [key for key in _index(family) if key.startswith("tokenizer")]:
        clip_tokenizer.save_pretrained(str(folder / name))
    # few steps, because images of random weights show nothing
    card = {"licence": "none: random weights", "native_size": native_size or NATIVE[family], "defaults": {"steps": 4}}
    for name, content in {
        "scheduler/scheduler_config.json": _scheduler(family), "model_index.json": _index(family), "celebctl.json": card
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=[*PARAMETERS], default="sd15")
    parser.add_argument("--native-size", type=int, default=0)
    args = parser.parse_args()
    write_model(args.folder, args.native_size, family=args.family)


if __name__ == "__main__":
    main()
