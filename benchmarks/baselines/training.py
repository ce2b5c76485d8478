"""What all methods share: the photo as training views, captions, the denoising loss, the loop and its budget.

Follows huggingface/diffusers examples/textual_inversion, examples/dreambooth and examples/custom_diffusion: uniform
timesteps, mean squared error of the model's own prediction type, AdamW (0.9, 0.999) with weight decay 1e-2, gradients
clipped at 1, constant learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from torch import Tensor

from celebctl.learning.captions import PHOTO
from celebctl.learning.config import PRESETS
from celebctl.learning.device import has_bfloat16_units, select_attention
from celebctl.learning.initialization import with_model_framing
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import draw
from celebctl.learning.views import make_views
from celebctl_models.checkpoints.diffusion import DiffusionParts, latents_from_pixels, network_output, read_texts
from celebctl_models.faces.analysis import FaceAnalyser
from celebctl_runtime.sampling.schedule import ScheduleConfig

VIEWS_KEPT = 48  # augmented views per person, encoded once, as `learn` does
CLASS_PICTURES = 32  # for prior preservation; drawn by the frozen model

#: Textual inversion's own template list (rinongal/textual_inversion and diffusers' textual_inversion.py).
OBJECT_TEMPLATES: tuple[str, ...] = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of a clean {}",
    "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}", "a photo of the cool {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a cropped photo of a {}", "a photo of the {}",
    "a good photo of the {}", "a photo of one {}", "a close-up photo of the {}", "a rendition of the {}",
    "a photo of the clean {}", "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}",
    "a photo of the nice {}", "a photo of the small {}", "a photo of the weird {}", "a photo of the large {}",
    "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip


@dataclass(frozen=True)
class Hyperparameters:
    """What is tuned for each method. rate: learning rate. share: of the budget. batch: views of each person per step.

    data: "clean" shows celebctl's own views and captions, which every method is given first; "script" shows the photo
    as the official scripts do (resized to the model's size) with their captions, if a method does better with those.
    """

    rate: float
    share: float = 1.0
    batch: int = 4
    data: str = "clean"


@dataclass(frozen=True)
class Subject:
    """A person to learn from one photo. name: as in prompts, ``<name>``."""

    name: str
    photo: Image


@dataclass
class Setup:
    """The frozen model and what every method may use of it. budget: views of each person through the UNet with
    gradient; pictures of the class that prior preservation asks for count as views."""

    parts: DiffusionParts
    analyser: FaceAnalyser
    budget: int

    def __post_init__(self) -> None:
        if len(self.parts.text_encoders) != 1:
            raise SystemExit("the baselines are written for models with one text encoder (SD 1.x, 2.x, mini)")
        select_attention(self.parts)
        self.device: torch.device = next(self.parts.unet.parameters()).device
        self.fast = self.parts.unet.dtype == torch.float32 and has_bfloat16_units(self.device)

    @cached_property
    def alphas(self) -> Tensor:
        """Cumulative alphas (T,)."""
        schedule = ScheduleConfig.from_dict(self.parts.scheduler_config)
        return torch.as_tensor(schedule.alphas_cumprod()).float()

    @cached_property
    def class_latents(self) -> Tensor:
        """Latents (N, 4, h, w) of pictures of the class noun, as generate-class-images of the scripts makes them."""
        noun, pixels = self.parts.card.class_noun, list[NDArray[np.uint8]]()
        for start in range(0, CLASS_PICTURES, 16):
            seeds = [70_000 + start + i for i in range(16)]
            pixels.append(draw(self.parts, [f"a photo of a {noun}"] * 16, seeds, {}))
        return self.encode(torch.as_tensor(np.concatenate(pixels)).permute(0, 3, 1, 2) / 127.5 - 1.0, 0)

    @torch.no_grad()
    def encode(self, pixels: Tensor, seed: int) -> Tensor:
        noise = torch.Generator(self.device).manual_seed(seed)
        parts = torch.split(pixels.to(self.device), 16)
        return torch.cat([latents_from_pixels(self.parts.vae, part, noise) for part in parts]).float()

    def latents(self, subject: Subject, hyper: Hyperparameters, flip: bool) -> Tensor:
        """Training views of a photo, (V, 4, h, w)."""
        size = self.parts.card.native_size
        if hyper.data == "clean":
            generator = torch.Generator().manual_seed(0)
            face = self.analyser.analyse(subject.photo)[0]
            config = with_model_framing(PRESETS["clean"], prepare(self.parts))
            views = make_views(subject.photo, face, size, VIEWS_KEPT, config, generator)
            return self.encode(views.pixels, 0)
        image = subject.photo.convert("RGB").resize((size, size), Resampling.BICUBIC)
        pixels = torch.as_tensor(np.asarray(image, np.float32).copy()).permute(2, 0, 1) / 127.5 - 1.0
        both = torch.stack([pixels, pixels.flip(-1)] if flip else [pixels])
        return self.encode(both.repeat(8, 1, 1, 1), 0)  # the autoencoder draws each anew, as on every step of a script


def captions_of(hyper: Hyperparameters, script: Sequence[str]) -> Sequence[str]:
    """Templates with ``{}`` for the phrase that stands for the person."""
    return PHOTO if hyper.data == "clean" else script


def tokenise(parts: DiffusionParts, texts: Sequence[str]) -> Tensor:
    """Ids (n, L)."""
    out = parts.tokenizers[0](
        list(texts), padding="max_length", truncation=True, max_length=parts.max_length, return_tensors="pt"
    )
    return out.input_ids.to(next(parts.unet.parameters()).device)


@dataclass
class Person:
    """A person during training. ids: (T, L) captions; latents: (V, 4, h, w); word: id whose row is learned, or None."""

    ids: Tensor
    latents: Tensor
    rows: Tensor | None = None  # (n, D), a parameter
    positions: Tensor | None = None  # (T, n) where they stand


def train(
    setup: Setup, unet: Any, people: Sequence[Person], parameters: Iterable[Any], hyper: Hyperparameters, seed: int, *,
    prior: bool = False, penalty: Callable[[], Tensor] | None = None,
) -> int:  # fmt: skip
    """Run one method's loop within the budget; returns the steps. ``prior``: half of each batch shows the class."""
    parts, generator = setup.parts, torch.Generator().manual_seed(seed)
    chosen = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(chosen, lr=hyper.rate, betas=(0.9, 0.999), weight_decay=1e-2)
    steps = max(1, int(setup.budget * hyper.share) // hyper.batch)
    own = hyper.batch // 2 if prior else hyper.batch
    class_ids = tokenise(parts, [f"a photo of a {parts.card.class_noun}"]) if prior else None
    for _ in range(steps):
        x0, context = _instances(setup, people, own, generator)
        if class_ids is not None:
            count = (hyper.batch - own) * len(people)
            at = torch.randint(len(setup.class_latents), (count,), generator=generator)
            plain, _ = read_texts(parts, class_ids)
            x0, context = torch.cat([x0, setup.class_latents[at]]), torch.cat([context, plain.expand(count, -1, -1)])
        loss = denoising_loss(setup, unet, x0, context, generator)
        if penalty is not None:
            loss = loss + penalty()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimiser.step()  # pyright: ignore[reportUnknownMemberType]
    return steps


def _instances(setup: Setup, people: Sequence[Person], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` noised-to-be latents of everybody and their contexts."""
    x0: list[Tensor] = []
    contexts: list[Tensor] = []
    for person in people:
        view = torch.randint(len(person.latents), (count,), generator=generator)
        text = torch.randint(len(person.ids), (count,), generator=generator)
        x0.append(person.latents[view])
        inserts = None if person.rows is None else [person.rows[None].expand(count, -1, -1)]
        at = None if person.positions is None else person.positions[text]
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.fast):
            contexts.append(read_texts(setup.parts, person.ids[text], inserts, at)[0])
    return torch.cat(x0), torch.cat(contexts)


def denoising_loss(setup: Setup, unet: Any, x0: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error at uniform timesteps, of epsilon or velocity as the model predicts."""
    t = torch.randint(len(setup.alphas), (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    alpha = setup.alphas[t].view(-1, 1, 1, 1).to(x0.device)
    noisy = alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise
    with torch.autocast(setup.device.type, torch.bfloat16, enabled=setup.fast):
        predicted = network_output(unet, noisy.to(unet.dtype), t.to(x0.device), context.to(unet.dtype))
    velocity = setup.parts.prediction_type == "v_prediction"
    target = alpha.sqrt() * noise - (1.0 - alpha).sqrt() * x0 if velocity else noise
    return F.mse_loss(predicted.float(), target)
