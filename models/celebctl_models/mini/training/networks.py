"""The small networks that look at pictures: two recognisers of different build, a detector, an attribute reader.

The recogniser and the detector end up as ONNX files in the formats insightface reads (ArcFace: (B, 3, 112, 112) -> 512
numbers; SCRFD: nine outputs, strides 8/16/32, two anchors per cell). The judge and the attribute reader only score.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.PReLU(outputs),
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, halving the picture."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, outputs, stride=2), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.short = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.short(x))


class Recogniser(nn.Module):
    """A small residual face network with a global depthwise layer.

    (B, 3, 112, 112) in [-1, 1] -> (B, 512), not normalised.
    """

    def __init__(self, features: int = 512) -> None:
        super().__init__()
        self.stem = conv(3, 32, 5, 2)  # 56
        self.body = nn.Sequential(Residual(32, 48), Residual(48, 96), Residual(96, 160), conv(160, 160))  # 28, 14, 7, 7
        self.pool = nn.Sequential(nn.Conv2d(160, 160, 7, groups=160, bias=False), nn.BatchNorm2d(160), nn.Flatten())
        self.head = nn.Linear(160, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(self.stem(x))))


class Judge(nn.Module):
    """The other build: plain convolutions at half size, ReLU, quarters pooled: (B, 3, 112, 112) -> (B, 256).

    (Separable convolutions were the first choice and four times slower to train on a CPU.)
    """

    def __init__(self, features: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]  # 56
        plan = ((3, 32, 5, 2), (32, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1), (128, 192, 3, 2))
        for inputs, outputs, kernel, stride in plan:
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)  # (B, 192, 7, 7)
        self.head = nn.Sequential(nn.Linear(2 * 192 * 4, features), nn.BatchNorm1d(features))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        # quarters keep where things are; mean and peak keep what they are
        quarters = torch.cat([x[..., :4, :4], x[..., :4, 3:], x[..., 3:, :4], x[..., 3:, 3:]], 1)
        return self.head(torch.cat([quarters.mean((2, 3)), quarters.amax((2, 3))], 1))


class Detector(nn.Module):
    """SCRFD-shaped: image (1, 3, H, W), (x - 127.5) / 128 -> scores, boxes, points for strides 8, 16, 32.

    Outputs, in insightface's order: three (N, 1) scores in [0, 1], three (N, 4) distances to the box sides and three
    (N, 10) offsets to five landmarks, all in units of the stride, N = 2 * cells, both anchors of a cell alike.
    """

    STRIDES = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 32, 3, 2), conv(32, 48, 3, 2), conv(48, 48))
        self.downs = nn.ModuleList(
            [
                nn.Identity(),
                nn.Sequential(conv(48, 64, 3, 2), conv(64, 64)),
                nn.Sequential(conv(64, 64, 3, 2), conv(64, 64)),
            ]
        )
        self.heads = nn.ModuleList([nn.Sequential(conv(width, 48), nn.Conv2d(48, 15, 1)) for width in (48, 64, 64)])
        for head in self.heads:
            nn.init.constant_(cast(Any, head)[1].bias[:1], -4.0)  # faces are rare

    def maps(self, image: Tensor) -> list[Tensor]:
        """Raw maps (B, 15, H/s, W/s): score logit, 4 distances, 10 offsets."""
        x = self.stem(image)
        made: list[Tensor] = []
        for down, head in zip(self.downs, self.heads, strict=True):
            x = down(x)
            made.append(head(x))
        return made

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        flat = [m.permute(0, 2, 3, 1).reshape(-1, 15).repeat_interleave(2, 0) for m in self.maps(image)]
        return (*(f[:, :1].sigmoid() for f in flat), *(f[:, 1:5] for f in flat), *(f[:, 5:] for f in flat))


class AttributeReader(nn.Module):
    """Reads a 64 x 64 scene.

    (B, 3, 64, 64) in [-1, 1] -> logits of two/place/act/expression/worn/style, joined (B, sum).
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.body = nn.Sequential(
            conv(3, 32, 3),
            nn.MaxPool2d(2),
            conv(32, 64),
            nn.MaxPool2d(2),
            conv(64, 96),
            nn.MaxPool2d(2),
            conv(96, 128),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 16, 128), nn.PReLU(), nn.Linear(128, sum(sizes))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class LatentReader(nn.Module):
    """Reads who and what is in a latent; a sense of detail for the denoiser's training, never shipped.

    (B, 4, 16, 16) standardised latents -> maps (B, 128, 8, 8) and (B, 192, 4, 4), looks (B, 2, A), facts (B, sum).
    """

    def __init__(self, looks: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.looks = looks
        self.fine = nn.Sequential(conv(4, 96), conv(96, 96))
        self.middle = nn.Sequential(conv(96, 128, stride=2), conv(128, 128))
        self.coarse = nn.Sequential(conv(128, 192, stride=2), conv(192, 192))
        self.trunk = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(192 * 16, 512), nn.PReLU())
        self.person, self.scene = nn.Linear(512, 2 * looks), nn.Linear(512, sum(sizes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        middle = self.middle(self.fine(x))
        coarse = self.coarse(middle)
        known = self.trunk(coarse)
        return middle, coarse, self.person(known).view(len(x), 2, self.looks), self.scene(known)
