"""The networks of this world that mini does not have: readers of latents, of statements and of features."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from celebctl_models.mini.illustration.scenes import PEOPLE
from celebctl_models.mini.training.networks import conv

from .data import LATENT


class LatentReader(nn.Module):
    """Reads who and what is in a latent; a sense of detail for the denoiser's training, never shipped.

    (B, 16, 16, 16) standardised latents -> maps (B, 160, 8, 8) and (B, 256, 4, 4), looks of three people and of a car
    (B, 3 * looks + car_looks), statements (B, sum of sizes).
    """

    def __init__(self, looks: int, car_looks: int, statements: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(conv(LATENT, 128), conv(128, 128))
        self.middle = nn.Sequential(conv(128, 160, stride=2), conv(160, 160))
        self.coarse = nn.Sequential(conv(160, 256, stride=2), conv(256, 256))
        self.trunk = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(256 * 16, 640), nn.PReLU())
        self.subjects, self.scene = nn.Linear(640, PEOPLE * looks + car_looks), nn.Linear(640, statements)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        middle = self.middle(self.fine(x))
        coarse = self.coarse(middle)
        known = self.trunk(coarse)
        return middle, coarse, self.subjects(known), self.scene(known)


class StatementReader(nn.Module):
    """Reads what a picture states: (B, 3, 128, 128) in [-1, 1] -> logits (B, outputs)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (3, 24, 48, 80, 112, 144)
        self.body = nn.Sequential(*(nn.Sequential(conv(a, b), nn.MaxPool2d(2)) for a, b in pairwise(widths)))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(144 * 16, 160), nn.PReLU(), nn.Linear(160, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _normalised(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class FeatureReader(nn.Module):
    """Reads the features of one person or car: a crop (B, 3, 112, 112) in [-1, 1] -> logits (B, outputs).

    A build of its own (strided convolutions, group normalisation, SiLU, no pooling before the head), so that it shares
    no weakness with recogniser and judge.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _normalised(3, 40, 4, 2),  # 56
            _normalised(40, 64, 3, 2),  # 28
            _normalised(64, 64, 3, 1),
            _normalised(64, 112, 3, 2),  # 14
            _normalised(112, 112, 3, 1),
            _normalised(112, 128, 3, 2),  # 7
        )
        self.head = nn.Sequential(
            nn.Conv2d(128, 48, 1), nn.SiLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48 * 49, 128), nn.SiLU(),
            nn.Linear(128, outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
