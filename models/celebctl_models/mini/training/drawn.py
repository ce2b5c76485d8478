"""Trains what tells the drawn people of mini's world from everything else (celebctl_models.mini.drawn).

    python -m celebctl_models.mini.training.drawn --out pictures

The network sees the aligned crops of faces that mini's detector finds. Distances of the recogniser's feature alone do
not tell photographs apart: it maps every crop to the 50 dimensions that drawn people differ in.
Drawn crops come from people of seeds that nothing else uses, as portraits and as scenes before and after mini's
autoencoder. The others are parts of photographs and textures that scikit-image and insightface ship, what mini's
detector takes for faces in them, and random shapes. Both are degraded alike: compressed, reduced, blurred, grey, with
few colours. The portraits that the network is tested with, scikit-image's astronaut and Matplotlib's Grace Hopper, are
not among them.
"""

from __future__ import annotations

import argparse
import io
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor, nn

from celebctl_models.faces.analysis import CROP, OnnxFaceAnalyser
from celebctl_models.mini.people import sample_people, uniform_from_normal
from celebctl_models.mini.scenes import random_scenes, render
from celebctl_models.mini.world import draw_portrait

from .assemble import UnitScale, save_onnx

WEIGHTS = Path(__file__).parents[1] / "weights"
PORTRAITS, SCENES, OTHERS, DETECTIONS = 2700, 400, 4000, 1500
SEED, SIZE = 1_000_000, 160  # seeds of the drawn people; portraits' pixels
STEPS, BATCH = 2600, 64
#: Photographs and textures in scikit-image's wheel, and photographs of people in insightface's.
IMAGES = (
    "brick camera cell chelsea clock_motion coffee coins color grass gravel hubble_deep_field ihc moon motorcycle_left"
    " page retina rocket text"
).split()
PEOPLE = ("Tom_Hanks_54745.png", "t1.jpg")
Crops = NDArray[np.uint8]


class DrawnNetwork(nn.Module):
    """Aligned crops (B, 3, 112, 112) RGB in [-1, 1], halved, to logits (B, 1): above 0 for drawn people."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
                for before, after in pairwise(widths)
            )
        )
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits(halved(pixels))

    def logits(self, small: Tensor) -> Tensor:
        """(B, 3, 56, 56) to (B, 1)."""
        maps = self.layers(small)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))


def halved(pixels: Tensor) -> Tensor:
    """(B, 3, 112, 112) to (B, 3, 56, 56)."""
    return F.avg_pool2d(pixels, 2)


def degraded(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """An image as it may arrive: smaller, blurred, grey, mirrored, with few colours, compressed."""
    if random.random() < 0.4:
        side = int(random.integers(40, 160))
        image = image.resize((side, max(1, round(side * image.height / image.width))), Image.Resampling.BICUBIC)
    if random.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 2.0))))
    if random.random() < 0.1:
        image = image.convert("L").convert("RGB")
    if random.random() < 0.1:
        image = image.quantize(int(random.integers(8, 64))).convert("RGB")
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    if random.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(random.integers(30, 95)))
        image = Image.open(buffer).convert("RGB")
    return image


def drawn_images(random: np.random.Generator) -> list[Image.Image]:
    """Portraits, and scenes of one person as rendered and as mini's autoencoder decodes them."""
    portraits = [draw_portrait(SEED + number, SIZE) for number in range(PORTRAITS)]
    generator = torch.Generator().manual_seed(SEED)
    factors = torch.as_tensor(uniform_from_normal(sample_people(2 * SCENES, SEED))).view(SCENES, 2, -1)
    scenes = random_scenes(factors, torch.zeros(SCENES, dtype=torch.bool), generator)
    autoencoder: Any = import_module("diffusers").AutoencoderKL.from_pretrained(WEIGHTS / "vae").eval()
    rendered: list[Image.Image] = []
    with torch.no_grad():
        for start in range(0, SCENES, 20):
            image = render(scenes[slice(start, start + 20)], 64).image
            decoded = autoencoder.decode(autoencoder.encode(image * 2 - 1).latent_dist.mean).sample / 2 + 0.5
            for pixels in torch.cat([image, decoded]).clamp(0, 1).mul(255).round().to(torch.uint8):
                shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
                rendered.append(shown.resize((256, 256), Image.Resampling(int(random.choice([0, 1, 3])))))
    return portraits + rendered


def other_crops(random: np.random.Generator) -> Crops:
    """Crops (n, 112, 112, 3) of photographs and random shapes: anywhere, and where mini's detector finds a face."""
    analyser, images = OnnxFaceAnalyser(WEIGHTS / "faces"), photographs()
    made: list[NDArray[np.uint8]] = []
    for number in range(OTHERS + DETECTIONS):
        image = random_shapes(random) if number % 8 == 0 else images[int(random.integers(len(images)))]
        side = int(min(image.size) * random.uniform(0.1, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        part = degraded(recoloured(image.crop((left, top, left + side, top + side)), random), random)
        if number < OTHERS:
            made.append(np.asarray(part.resize((CROP, CROP), Image.Resampling.BILINEAR), np.uint8))
        else:
            made += [face.crop112 for face in analyser.analyse(part)]
    return np.stack([framed(crop, random) for crop in made])


def photographs() -> list[Image.Image]:
    """The photographs of things once, those of people three times."""
    scikit_image, insightface = (
        Path(str(import_module(name).__file__)).parent / "data" for name in ("skimage", "insightface")
    )
    people = [Image.open(insightface / "images" / name).convert("RGB") for name in PEOPLE]
    return [Image.open(next(scikit_image.glob(f"{name}.*g"))).convert("RGB") for name in IMAGES] + 3 * people


def recoloured(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """An image in other colours, so that bright colours do not make it a drawing."""
    pixels = np.asarray(image)[:, :, random.permutation(3)] if random.random() < 0.5 else np.asarray(image)
    return ImageEnhance.Color(Image.fromarray(np.ascontiguousarray(pixels))).enhance(float(random.uniform(0.5, 3.0)))


def framed(crop: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A crop, at times smaller on black, grey or white, as in a screenshot: drawn or not, alike."""
    if random.random() < 0.8:
        return crop
    border = int(CROP * random.uniform(0.02, 0.5))
    offset = tuple(int(value) for value in random.integers(-border, border + 1, 2))
    colour = str(random.choice(["black", "#eeeeee", "white"]))
    image = ImageChops.offset(ImageOps.expand(Image.fromarray(crop), border, colour), *offset)
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR), np.uint8)


def random_shapes(random: np.random.Generator) -> Image.Image:
    """Flat shapes of random colours."""
    image = Image.new("RGB", (160, 160), tuple(int(value) for value in random.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(1, 12))):
        (x, y), (width, height) = random.integers(-20, 150, 2), random.integers(5, 90, 2)
        shape = (draw.ellipse, draw.rectangle)[int(random.integers(2))]
        shape((int(x), int(y), int(x + width), int(y + height)), tuple(int(v) for v in random.integers(0, 256, 3)))
    return image


def drawn_crops(random: np.random.Generator) -> Crops:
    """Crops (n, 112, 112, 3) of the faces that mini's detector finds in degraded drawn images."""
    analyser = OnnxFaceAnalyser(WEIGHTS / "faces")
    found = [face.crop112 for image in drawn_images(random) for face in analyser.analyse(degraded(image, random))]
    return np.stack([framed(crop, random) for crop in found])


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored by chance, with other brightness, contrast and colour balance and a little noise."""

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), channels, 1, 1, generator=generator)

    pixels = torch.where(uniform(0, 1) < 0.5, pixels.flip(3), pixels)
    pixels = pixels * uniform(0.75, 1.25) * uniform(0.9, 1.1, 3) + uniform(-0.15, 0.15)
    return (pixels + uniform(0.0, 0.05) * torch.randn(pixels.shape, generator=generator)).clamp(-1, 1)


def train(drawn: Crops, others: Crops) -> DrawnNetwork:
    """The trained network; every batch is half drawn."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    network, generator = DrawnNetwork(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    kinds = [halved(torch.as_tensor(kind).permute(0, 3, 1, 2).float() / 127.5 - 1) for kind in (drawn, others)]
    target = torch.cat([torch.ones(BATCH // 2), torch.zeros(BATCH // 2)])
    for step in range(STEPS):
        chosen = [kind[torch.randint(len(kind), (BATCH // 2,), generator=generator)] for kind in kinds]
        logits = network.logits(varied(torch.cat(chosen), generator))[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    return network.eval()


def main() -> None:
    """Train the network and write it."""
    parser = argparse.ArgumentParser(description="Train the network that recognises mini's drawn people.")
    parser.add_argument("--out", type=Path, default=WEIGHTS / "pictures")
    args = parser.parse_args()
    drawn, others = drawn_crops(np.random.default_rng(SEED)), other_crops(np.random.default_rng(SEED + 1))
    print(f"{len(drawn)} drawn crops, {len(others)} others")
    example, batch = torch.zeros(2, 3, CROP, CROP), torch.export.Dim.DYNAMIC
    network = UnitScale(train(drawn, others), normalise=False)
    save_onnx(network, example, args.out / "drawn.onnx", (["pixels"], ["logit"]), ({0: batch},))


if __name__ == "__main__":
    main()
