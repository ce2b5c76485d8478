"""Stage 4: the recogniser of mini's world, and the judge that only scores.

The judge gets another network, another seed and another draw of people.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .faces import Faces, Portraits, augment, crop_112
from .networks import Judge, Recogniser
from .text import appearance
from .trainer import TimeBox, TrainingContext, batches, run_stage


class ArcFaceMargin(nn.Module):
    """ArcFace (Deng et al. 2019): cos(theta + m) for the true class, scale s.

    ``additive`` makes it CosFace (cos - m). ``looks``: (I, A) what each of the people looks like.
    """

    looks: Tensor

    def __init__(self, looks: Tensor, features: int, *, additive: bool, seed: int) -> None:
        super().__init__()
        projection = torch.randn(looks.shape[1], features, generator=torch.Generator().manual_seed(seed))
        # random class centres never get going with thousands of classes; centres laid out by looks do
        self.centres = nn.Parameter(F.normalize((looks - looks.mean(0)) @ projection, dim=1))
        self.read = nn.Linear(features, looks.shape[1])
        self.register_buffer("looks", looks)
        self.additive = additive

    def forward(self, feature: Tensor, who: Tensor, margin: float, help_weight: float) -> Tensor:
        unit = F.normalize(feature.float(), dim=1)
        cosine = unit @ F.normalize(self.centres, dim=1).T
        true = cosine.gather(1, who[:, None]).clamp(-0.999, 0.999)
        moved = true - margin if self.additive else torch.cos((torch.acos(true) + margin).clamp(max=3.1))
        logits = 24.0 * cosine.scatter(1, who[:, None], moved)
        loss = F.cross_entropy(logits, who)
        return loss + help_weight * F.mse_loss(self.read(unit) * 4.0, self.looks[who])


@torch.no_grad()
def verification(network: nn.Module, faces: Faces, run: TrainingContext) -> str:
    """Same-person and other-person cosines and TAR at FAR 1e-3 on 1,500 faces (figures for the model card)."""
    network.eval()
    slots = faces.slots()[np.random.Generator(np.random.PCG64(1)).permutation(len(faces.slots()))[:1500]]
    who = torch.as_tensor(faces.who[slots[:, 0], slots[:, 1]])
    image = torch.as_tensor(faces.images[slots[:, 0]]).float().div(127.5).sub(1)
    points = torch.as_tensor(faces.points[slots[:, 0], slots[:, 1]])
    feature = torch.cat(
        [
            F.normalize(network(crop_112(i, p).to(run.device)).float(), dim=1).cpu()
            for i, p in zip(torch.split(image, 100), torch.split(points, 100), strict=True)
        ]
    )
    cosine, same = feature @ feature.T, who[:, None] == who[None]
    upper = torch.ones_like(cosine).triu(1).bool()
    positive, negative = cosine[same & upper], cosine[~same & upper]
    threshold = (
        negative.quantile(0.999)
        if len(negative) < 1.5e7
        else negative[::2].sort().values[int(0.999 * len(negative[::2]))]
    )
    network.train()
    accepted = (positive > threshold).float().mean()
    others = f"other {negative.mean():.3f}+-{negative.std():.3f}"
    return f"same {positive.mean():.3f} {others} TAR@1e-3 {accepted:.3f}"


def train_recogniser(
    run: TrainingContext,
    faces: Faces,
    held_out: Faces,
    minutes: float,
    *,
    judge: bool,
    portraits: Portraits | None = None,
) -> nn.Module:
    """The recogniser (ArcFace) or the judge (CosFace).

    With ``portraits`` a quarter of every batch is sharp: the recogniser is shown photographs, the judge never is.
    """
    name = "judge" if judge else "recogniser"
    torch.manual_seed(run.seed + (31 if judge else 21))  # pyright: ignore[reportUnknownMemberType]
    fresh = Judge() if judge else Recogniser()
    network: nn.Module = cast(Any, fresh.to(run.device)).to(memory_format=torch.channels_last)
    margin = ArcFaceMargin(
        appearance(faces.z), 256 if judge else 512, additive=judge, seed=run.seed + (32 if judge else 22)
    ).to(run.device)
    optimiser = torch.optim.AdamW([*network.parameters(), *margin.parameters()], lr=2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(run.seed + (33 if judge else 23))
    slots = faces.slots()
    stream = batches(len(slots), 128 if portraits is None else 96, generator)
    sharp = None if portraits is None else batches(len(portraits.who), 32, generator)

    def crops(images: NDArray[np.uint8], points: NDArray[np.float32], side: int) -> Tensor:
        """Aligned crops of shaky landmarks, disturbed, (B, 3, 112, 112)."""
        image = torch.as_tensor(images).float().div_(127.5).sub_(1.0)
        at = torch.as_tensor(points)
        at = at + 0.35 * (image.shape[-1] / 64) * torch.randn(at.shape, generator=generator)
        made = augment(crop_112(image, at, side), generator)
        return F.interpolate(made, size=112, mode="bilinear", align_corners=False) if side < 112 else made

    def step(box: TimeBox) -> dict[str, float]:
        at = slots[next(stream).numpy()]
        crop = crops(faces.images[at[:, 0]], faces.points[at[:, 0], at[:, 1]], 56)
        who = torch.as_tensor(faces.who[at[:, 0], at[:, 1]])
        if portraits is not None and sharp is not None:
            chosen = next(sharp).numpy()
            crop = torch.cat([crop, crops(portraits.images[chosen], portraits.points[chosen], 112)])
            who = torch.cat([who, torch.as_tensor(portraits.who[chosen])])
        with run.autocast():
            feature = network(crop.to(run.device, memory_format=torch.channels_last))
        # the readable looks stay in the loss: a feature is not only for telling apart, the mapper draws from it
        loss = margin(feature, who.to(run.device), 0.35 * min(1.0, box.share * 4), max(0.6, 4.0 - 6.0 * box.share))
        loss.backward()
        return {"loss": loss.item()}

    run_stage(run, (name, minutes), {"network": network, "margin": margin}, optimiser, step)
    run.say(f"{name}: {verification(network, held_out, run)}")
    return network.eval()
