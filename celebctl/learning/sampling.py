"""Generating images with the torch networks: likeness during training, contact sheets, evaluation.

With the sampler tables, seeds and guidance of the exported runtime, so images agree with it up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.checkpoints.diffusion import (
    UNetConditioning,
    network_output,
    pixels_from_latents,
    read_texts,
    rescale_guided,
)
from celebctl_runtime.sampling.noise import initial_noise, step_noise
from celebctl_runtime.sampling.samplers import step_table

from .captions import place_people
from .device import autocast_dtype

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

#: People in a prompt of this module are written <alice>, so that no word is taken for a name.
_PERSON = re.compile(r"<([a-z][a-z0-9_-]*)>")


#: Name to embeddings (2, D) for every text encoder.
People = Mapping[str, tuple[Tensor, ...]]


def prompt_texts(parts: DiffusionParts, prompts: Sequence[str], people: People) -> tuple[Tensor, Tensor | None]:
    """Contexts (B, 77, D), and pooled texts (B, P) or None; in a prompt ``<name>`` stands for one of ``people``."""
    device = next(parts.denoiser.parameters()).device
    rows: list[Tensor] = []
    inserts: list[list[tuple[Tensor, ...]]] = []
    positions: list[list[Tensor]] = []
    for prompt in prompts:
        pieces = _PERSON.split(prompt)
        ids, found = place_people(parts.tokenizers[0], parts.max_length, pieces[0::2])
        rows.append(ids)
        inserts.append([people[name] for name in pieces[1::2]])
        positions.append(found)
    most = max(len(found) for found in positions)
    ids = torch.stack(rows).to(device)
    if most == 0:
        return read_texts(parts, ids)
    filled = [torch.zeros(len(rows), 2 * most, parts.token_table(e).shape[1], device=device) for e in _encoders(parts)]
    where = torch.full((len(rows), 2 * most), -1, device=device)
    for b, (given, found) in enumerate(zip(inserts, positions, strict=True)):
        for k, (person, at) in enumerate(zip(given, found, strict=True)):
            where[b, 2 * k : 2 * k + 2] = at.to(device)
            for table, row in zip(filled, person, strict=True):
                table[b, 2 * k : 2 * k + 2] = row
    return read_texts(parts, ids, filled, where)


def _encoders(parts: DiffusionParts) -> range:
    return range(len(parts.text_encoders))


def _guided(parts: DiffusionParts, prompts: Sequence[str], people: People) -> tuple[Tensor, Tensor | None]:
    """Unconditional and conditional contexts as one batch (2 B, ...)."""
    context, pooled = prompt_texts(parts, prompts, people)
    empty, empty_pooled = prompt_texts(parts, [""], {})
    strength = 0.0 if parts.zero_empty_prompt else 1.0
    context = torch.cat([(strength * empty).expand_as(context), context])
    if pooled is None or empty_pooled is None:
        return context, None
    return context, torch.cat([(strength * empty_pooled).expand_as(pooled), pooled])


class DrawOptions(TypedDict, total=False):
    """Sampling steps, guidance scale and sampler, by default the model's; ``fast`` (default) runs the denoiser in half
    precision, which is precise enough to measure faces."""

    steps: int | None
    guidance: float | None
    sampler: str | None
    fast: bool


@torch.no_grad()
def draw(
    parts: DiffusionParts, prompts: Sequence[str], seeds: Sequence[int], people: People, **options: Unpack[DrawOptions]
) -> NDArray[np.uint8]:
    """Images (B, H, W, 3) uint8 at the model's native size, one per prompt and seed."""
    sampler, steps, guidance = options.get("sampler"), options.get("steps"), options.get("guidance")
    fast = options.get("fast", True)
    device = next(parts.denoiser.parameters()).device
    defaults, half = parts.card.defaults, autocast_dtype(parts.denoiser)
    table = step_table(
        sampler or defaults["sampler"], parts.schedule,
        steps or int(defaults["steps"]), float(defaults["guidance"] if guidance is None else guidance),
    )  # fmt: skip
    height, width = (side // parts.vae_factor for side in parts.native_size)
    shape = (parts.latent_channels, height, width)
    guides = 1 if parts.guidance_is_embedded or float(table.aux[:, 2].max()) <= 1.0 else 2
    context, pooled = (_guided if guides == 2 else prompt_texts)(parts, prompts, people)
    size_ids = parts.size_ids(*parts.native_size)
    x = torch.as_tensor(np.stack([initial_noise(s, shape) for s in seeds])).to(device) * table.init_sigma
    history = torch.zeros_like(x)
    for i in range(table.steps):
        scale, timestep, strength = (float(v) for v in table.aux[i])
        with torch.autocast(device.type, half, enabled=fast):
            outputs = network_output(
                parts.denoiser,
                (x * scale).repeat(guides, 1, 1, 1),
                torch.tensor(timestep, device=device),
                context,
                UNetConditioning(pooled, size_ids, torch.tensor([strength], device=device)),
            )
        uncond, cond = outputs.float().chunk(2) if guides == 2 else (outputs.float(),) * 2
        output = uncond + strength * (cond - uncond)
        if guides == 2 and parts.guidance_rescale:
            output = rescale_guided(output, cond, parts.guidance_rescale)
        noise = torch.zeros_like(x)
        if table.uses_noise:
            noise = torch.as_tensor(np.stack([step_noise(s, i, shape) for s in seeds])).to(device)
        z = torch.stack([x, history, output, noise])
        x, history = torch.einsum("ij,jbchw->ibchw", torch.as_tensor(table.table[i]).to(device), z)
    with torch.autocast(device.type, half, enabled=fast):
        pixels = pixels_from_latents(parts.vae, x).float()
    return ((pixels.permute(0, 2, 3, 1) + 1.0) * 127.5).round().to(torch.uint8).cpu().numpy()


def rows_of(identity: Any) -> tuple[Tensor, ...]:
    """The embeddings (2, D) of an identity for every text encoder, for ``people`` of this module."""
    return tuple(torch.as_tensor(np.array(rows)) for rows in identity.embeddings)
