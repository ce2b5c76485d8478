"""A contact sheet of random pictures of the illustrated world.

python -m celebctl_models.mini.illustration.gallery --out FILE --seed N
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from celebctl_models.mini.names import name_book
from celebctl_models.mini.people import uniform_from_normal

from .cars import CAR_FACTORS, car_book
from .people import FACTORS
from .scenes import PEOPLE, Scenes, choose, draw, random_scenes

COLUMNS, ROWS = 8, 6


def random_gallery(count: int, seed: int) -> Scenes:
    """Scenes with celebrities and cars: the first third portraits, the rest anything."""
    generator = torch.Generator().manual_seed(seed)
    people = torch.as_tensor(uniform_from_normal(name_book(factors=len(FACTORS)).celebrities()))
    cars = torch.as_tensor(uniform_from_normal(car_book().celebrities()))
    who = torch.randint(0, len(people), (count, PEOPLE), generator=generator)
    number = choose(generator, [0.1, 0.45, 0.3, 0.15], count)
    with_car = (number == 0) | ((number < 3) & (torch.rand(count, generator=generator) < 0.15))
    which = torch.randint(0, len(cars), (count,), generator=generator)
    portraits = torch.arange(count) < count // 3
    with_car &= ~portraits
    number = torch.where(portraits, 1, number)
    blank = torch.full((count, len(CAR_FACTORS)), torch.nan)
    scenes = random_scenes(people[who], number, generator, torch.where(with_car[:, None], cars[which], blank))
    plain = {
        name: torch.where(portraits, 0, getattr(scenes, name))
        for name in ("act", "item", "worn", "expression", "style", "view")
    }
    distance = torch.where(portraits, torch.arange(count) % 2, scenes.distance)
    return replace(scenes, distance=distance, **plain)


def contact_sheet(images: Tensor, columns: int = COLUMNS) -> Image.Image:
    """Pictures (B, 3, S, S) in [0, 1] side by side."""
    size = images.shape[-1]
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * size, columns * size, 3), np.uint8)
    for i, image in enumerate((images.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()):
        row, column = divmod(i, columns)
        sheet[row * size : (row + 1) * size, column * size : (column + 1) * size] = image
    return Image.fromarray(sheet)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="picture file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="pixels per picture (default 128)")
    options = parser.parse_args()
    images = draw(random_gallery(COLUMNS * ROWS, options.seed), options.size).image
    contact_sheet(images).save(options.out)


if __name__ == "__main__":
    main()
