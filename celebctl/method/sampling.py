"""Drawing pictures with the torch networks, while they are open anyway: previews, contact sheets, measurements.

The same tables, seeds and guidance as the exported runtime, so a picture drawn here is the one `celebctl gen` draws up
to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from celebctl_models.diffusion import context_from_ids, network_output, pixels_from_latents
from celebctl_runtime.noise import initial_noise, step_noise
from celebctl_runtime.samplers import plan
from celebctl_runtime.schedule import ScheduleConfig

from .captions import place_people

if TYPE_CHECKING:
    from celebctl_models.diffusion import DiffusionParts

#: People in a prompt of this module are written <alice>; it is ours alone, so no word can be taken for a name.
_PERSON = re.compile(r"<([a-z][a-z0-9_-]*)>")


def prompt_contexts(parts: DiffusionParts, prompts: Sequence[str], people: Mapping[str, Tensor]) -> Tensor:
    """Contexts (B, 77, D) of prompts in which ``<name>`` stands for the rows (2, D) of ``people[name]``."""
    tokenizer, device = parts.tokenizers[0], next(parts.unet.parameters()).device
    rows: list[Tensor] = []
    inserts: list[list[Tensor]] = []
    positions: list[list[Tensor]] = []
    for prompt in prompts:
        pieces = _PERSON.split(prompt)
        ids, found = place_people(tokenizer, parts.max_length, pieces[0::2])
        rows.append(ids)
        inserts.append([people[name] for name in pieces[1::2]])
        positions.append(found)
    most = max(len(found) for found in positions)
    ids = torch.stack(rows).to(device)
    if most == 0:
        return context_from_ids(parts.text_encoders[0], ids)
    width = parts.token_table(0).shape[1]
    filled = torch.zeros(len(rows), 2 * most, width, device=device)
    where = torch.full((len(rows), 2 * most), -1, device=device)
    for b, (given, found) in enumerate(zip(inserts, positions, strict=True)):
        for k, (row, at) in enumerate(zip(given, found, strict=True)):
            filled[b, 2 * k : 2 * k + 2], where[b, 2 * k : 2 * k + 2] = row, at.to(device)
    return context_from_ids(parts.text_encoders[0], ids, filled, where)


@torch.no_grad()
def draw(
    parts: DiffusionParts, prompts: Sequence[str], seeds: Sequence[int], people: Mapping[str, Tensor], *,
    steps: int | None = None, guidance: float | None = None, sampler: str | None = None, fast: bool = True,
) -> NDArray[np.uint8]:  # fmt: skip
    """Pictures (B, H, W, 3) uint8 at the model's native size, one per prompt and seed.

    ``fast`` lets the UNet run in bfloat16, good enough to look at and to measure faces on.
    """
    device = next(parts.unet.parameters()).device
    defaults = parts.card.defaults
    table = plan(
        sampler or defaults["sampler"], ScheduleConfig.from_dict(parts.scheduler_config),
        steps or int(defaults["steps"]), float(defaults["guidance"] if guidance is None else guidance),
    )  # fmt: skip
    height, width = (side // parts.vae_factor for side in parts.native_size)
    shape = (parts.latent_channels, height, width)
    context = torch.cat(
        [prompt_contexts(parts, [""], {}).expand(len(prompts), -1, -1), prompt_contexts(parts, prompts, people)]
    )
    x = torch.as_tensor(np.stack([initial_noise(s, shape) for s in seeds])).to(device) * table.init_sigma
    history = torch.zeros_like(x)
    for i in range(table.steps):
        scale, timestep, strength = (float(v) for v in table.aux[i])
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            both = network_output(
                parts.unet, (x * scale).repeat(2, 1, 1, 1), torch.tensor(timestep, device=device), context
            )
        plain, told = both.float().chunk(2)
        output = plain + strength * (told - plain)
        noise = torch.zeros_like(x)
        if table.uses_noise:
            noise = torch.as_tensor(np.stack([step_noise(s, i, shape) for s in seeds])).to(device)
        z = torch.stack([x, history, output, noise])
        x, history = torch.einsum("ij,jbchw->ibchw", torch.as_tensor(table.table[i]).to(device), z)
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        pixels = pixels_from_latents(parts.vae, x).float()
    return ((pixels.permute(0, 2, 3, 1) + 1.0) * 127.5).round().to(torch.uint8).cpu().numpy()


def rows_of(identity: Any, encoder: int = 0) -> Tensor:
    """The two token rows (2, D) of an identity, for ``people`` above."""
    return torch.as_tensor(np.array(identity.embeddings[encoder]))
