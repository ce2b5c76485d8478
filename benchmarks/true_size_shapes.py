"""The networks of Stable Diffusion 2.1 and XL with their published configurations; 1.5 is in true_size_model.py.

true_size_flops.py builds them under FakeTensorMode, without data.
"""

from __future__ import annotations

from typing import Any, cast

#: Parameters of the published UNets.
UNET_PARAMETERS = {"sd21": 865_910_724, "sdxl": 2_567_463_684}


def unet(family: str) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if family == "sd21":
        config: dict[str, Any] = {
            "sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        }  # fmt: skip
    else:
        config = {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }  # fmt: skip
    network = cast(Any, UNet2DConditionModel)(layers_per_block=2, use_linear_projection=True, **config)
    count = sum(weight.numel() for weight in network.parameters())
    if count != UNET_PARAMETERS[family]:
        raise ValueError(f"the UNet of {family} has {count:,} parameters, the published {UNET_PARAMETERS[family]:,}")
    return network


def text_encoders(family: str) -> tuple[Any, ...]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    common: dict[str, Any] = {"vocab_size": 49_408, "max_position_embeddings": 77}
    small = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
        **common,
    )  # fmt: skip
    if family == "sd21":
        wide = CLIPTextConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
            **common,
        )  # fmt: skip
        return (cast(Any, CLIPTextModel)(wide),)
    wide = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu", **common,
    )  # fmt: skip
    return cast(Any, CLIPTextModel)(small), cast(Any, CLIPTextModelWithProjection)(wide)
