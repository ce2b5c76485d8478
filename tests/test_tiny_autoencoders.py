"""Tiny autoencoders in both layouts: the same network as diffusers' and as the original release, exported and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn

from celebctl.cli import main
from celebctl_models.checkpoints.diffusion import DiffusionParts
from celebctl_models.checkpoints.tiny_autoencoders import check_tiny_autoencoder, load_tiny_autoencoder
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request

WIDTH = 8
save_file: Any = cast(Any, safetensors.torch).save_file
from_numpy: Any = cast(Any, torch).from_numpy


class Clamp(nn.Module):
    """As in the original release: nothing has weights, but it counts as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        three = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), three[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def original(levels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of the original release, narrow: one block at full size, three at every other."""
    encoder: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), Block()]
    decoder: list[nn.Module] = [Clamp(), nn.Conv2d(4, WIDTH, 3, padding=1), nn.ReLU()]
    for _ in range(levels - 1):
        encoder += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2, bias=False), Block(), Block(), Block()]
        decoder += [Block(), Block(), Block(), nn.Upsample(scale_factor=2)]
        decoder.append(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False))
    encoder.append(nn.Conv2d(WIDTH, 4, 3, padding=1))
    decoder += [Block(), nn.Conv2d(WIDTH, 3, 3, padding=1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def write_original(folder: Path, levels: int) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(levels)  # pyright: ignore[reportUnknownMemberType]
    folder.mkdir()
    encoder, decoder = original(levels)
    save_file(encoder.state_dict(), folder / "taesd_encoder.safetensors")
    save_file(decoder.state_dict(), folder / "taesd_decoder.safetensors")
    return encoder, decoder


@pytest.mark.parametrize("name", ["", "taesd_decoder.safetensors", "taesd_encoder.safetensors"])
def test_the_original_layout_gives_the_original_network(tmp_path: Path, name: str) -> None:
    encoder, decoder = write_original(tmp_path / "taesd", levels=4)
    tiny = load_tiny_autoencoder(tmp_path / "taesd" / name)
    latents, pixels = 2 * torch.randn(1, 4, 6, 8), torch.rand(1, 3, 48, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(tiny.decode(latents).sample, decoder(latents) * 2 - 1)
        torch.testing.assert_close(tiny.encode(pixels).latents, encoder((pixels + 1) / 2))
    assert not any(weight.requires_grad for weight in tiny.parameters())


def test_both_layouts_have_the_same_weights(tmp_path: Path) -> None:
    write_original(tmp_path / "taesd", levels=3)
    first = load_tiny_autoencoder(tmp_path / "taesd")
    first.save_pretrained(tmp_path / "diffusers")
    second = load_tiny_autoencoder(tmp_path / "diffusers")
    assert isinstance(second, AutoencoderTiny) and first.config.num_decoder_blocks == (3, 3, 1)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def test_a_bundle_decodes_with_the_tiny_autoencoder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported by the command, run by ONNX Runtime, compared with diffusers' AutoencoderTiny."""
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    write_original(tmp_path / "taesd", levels=3)
    words = ["export", "--model", str(tiny_folder), "--tiny-vae", str(tmp_path / "taesd"), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    bundle, tiny = Bundle.open(tmp_path / "out"), load_tiny_autoencoder(tmp_path / "taesd")
    assert bundle.manifest.autoencoder == "AutoencoderTiny" and bundle.manifest.scaling_factor == 1.0
    backend, seed = OrtBackend(bundle, "cpu", 1), np.random.default_rng(0)
    latents = seed.standard_normal((1, 4, 16, 24), np.float32)
    pixels = seed.uniform(-1, 1, (1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        decoded = tiny.decode(from_numpy(latents)).sample.clamp(-1, 1).numpy()
        encoded = tiny.encode(from_numpy(pixels)).latents.numpy()
    np.testing.assert_allclose(backend.decode(latents), decoded, atol=2e-5)
    np.testing.assert_allclose(backend.encode_image(pixels), encoded, atol=2e-5)
    assert generate(bundle, backend, Request("a photo", seed=1, steps=2))[0].image.size == (64, 64)


def test_the_models_own_autoencoder_stays_the_default(exported_path: Path) -> None:
    assert Bundle.open(exported_path, verify="none").manifest.autoencoder == "AutoencoderKL"


def test_latents_must_be_those_of_the_model(tiny_parts: DiffusionParts, tmp_path: Path) -> None:
    write_original(tmp_path / "taesd", levels=4)
    with pytest.raises(InvalidInputError) as caught:
        check_tiny_autoencoder(load_tiny_autoencoder(tmp_path / "taesd"), tiny_parts)
    assert caught.value.reason == "tiny_autoencoder_mismatch"
    wide: Any = AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="16 latent channels"):
        check_tiny_autoencoder(wide, tiny_parts)
    write_original(tmp_path / "fits", levels=3)
    check_tiny_autoencoder(load_tiny_autoencoder(tmp_path / "fits"), tiny_parts)


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_original(tmp_path / "taesd", levels=3)
    (tmp_path / "taesd" / "taesd_encoder.safetensors").rename(tmp_path / "away")
    with pytest.raises(NotFoundError) as missing:
        load_tiny_autoencoder(tmp_path / "taesd")
    assert missing.value.values["path"] == tmp_path / "taesd" / "taesd_encoder.safetensors"
    (tmp_path / "away").replace(tmp_path / "taesd" / "taesd_encoder.safetensors")
    decoder = tmp_path / "taesd" / "taesd_decoder.safetensors"
    decoder.write_bytes(decoder.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="damaged"):
        load_tiny_autoencoder(decoder)
    for tensors in ({"first.weight": torch.zeros(2)}, {"1.weight": torch.zeros(8, 4, 3, 3)}):
        save_file(tensors, decoder)
        with pytest.raises(IntegrityError, match="layout of TAESD"):
            load_tiny_autoencoder(decoder)
    cast(Any, AutoencoderKL)(block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path / "large")
    for path in (tmp_path / "large", tmp_path / "large" / "config.json"):
        with pytest.raises(InvalidInputError) as other:
            load_tiny_autoencoder(path)
        assert other.value.reason == "not_a_tiny_autoencoder"


def test_the_command_takes_it_for_a_new_bundle_only(tmp_path: Path) -> None:
    assert main(["export", "--tiny-vae", str(tmp_path), "--add", "alice"]) == 2
    assert main(["export", "--tiny-vae", str(tmp_path), "--vae", str(tmp_path)]) == 2
    assert main(["export", "--model", "mini", "--tiny-vae", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out").exists()
