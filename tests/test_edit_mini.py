"""Edits of rendered pictures of mini's world, where the pixels that have to change are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.init_image import InitImage

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A celebrity by number, the words and facts before and after, and who is shown after."""

    celebrity: int
    before: str
    after: str
    facts: dict[str, str]
    new_facts: dict[str, str]
    other: int | None = None


def changed(celebrity: int, place: str, words: str, **fact: str) -> Case:
    where = {"beach": "on the beach", "city": "in the city", "forest": "in the forest", "snow": "in the snow"}[place]
    return Case(celebrity, where, f"{words} {where}", {"place": place}, {"place": place, **fact})


CASES = (
    changed(3, "beach", "smiling", expression="smiling"),
    changed(17, "city", "crying", expression="crying"),
    changed(42, "forest", "surprised", expression="surprised"),
    changed(60, "snow", "wearing a red hat", worn="red hat"),
    changed(75, "city", "wearing sunglasses", worn="sunglasses"),
    changed(101, "beach", "in a suit", worn="suit"),
    changed(133, "snow", "wearing a golden crown", worn="crown"),
    changed(160, "forest", "playing the guitar", act="guitar"),
    changed(200, "beach", "drinking tea", act="tea"),
    Case(
        250, "wearing a red hat in the snow", "wearing sunglasses in the snow",
        {"place": "snow", "worn": "red hat"}, {"place": "snow", "worn": "sunglasses"},
    ),
    Case(350, "in the forest", "in the forest", {"place": "forest"}, {"place": "forest"}, other=401),
    Case(410, "smiling on the beach", "smiling on the beach", {"place": "beach", "expression": "smiling"},
         {"place": "beach", "expression": "smiling"}, other=455),
)  # fmt: skip


def read_scenes(images: list[Pixels]) -> list[dict[str, str]]:
    """What mini's attribute reader sees."""
    from celebctl.evaluation.scorers import WorldScorer
    from celebctl_models.checkpoints.diffusion import load_parts

    folder = load_parts("mini").card.scoring_dir
    assert folder is not None
    finder: Any = None  # only finds faces, which are not scored here
    reader = WorldScorer(folder, finder)
    logits = reader.attribute_logits(images)
    return [{name: reader.vocabulary[name][int(row.argmax())] for name, row in each.items()} for each in logits]


@pytest.mark.slow
def test_edits_change_what_the_prompt_says_and_nothing_else(tmp_path: Path) -> None:
    """12 edits; a pixel has changed when a channel differs by more than 8 of 255."""
    from celebctl_export import ExportOptions, export_bundle
    from celebctl_models.checkpoints.diffusion import load_parts
    from celebctl_models.mini.names import name_book
    from celebctl_models.mini.people import uniform_from_normal
    from celebctl_models.mini.scenes import render
    from celebctl_models.mini.world import PromptFacts, build_scenes

    torch, book = pytest.importorskip("torch"), name_book()
    people = book.celebrities()

    def picture(celebrity: int, facts: dict[str, str], seed: int) -> Pixels:
        factors = torch.as_tensor(uniform_from_normal(people[[celebrity]]))[:, None].expand(1, 2, -1)
        scene = build_scenes(factors, two=False, facts=[PromptFacts(**facts)], seeds=[seed])
        return np.asarray((render(scene, 64).image[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8))

    bundle = export_bundle(load_parts("mini"), [], tmp_path / "mini", ExportOptions(spare_rows=8))
    backend, edited, outside, plain = OrtBackend(bundle, "cpu"), list[Pixels](), list[float](), list[float]()
    for number, case in enumerate(CASES):
        person = case.celebrity if case.other is None else case.other
        before, after = picture(case.celebrity, case.facts, number), picture(person, case.new_facts, number)
        stays = np.abs(before.astype(int) - after).max(2) <= 8
        image = InitImage.of(Image.fromarray(before))
        was = f"{book.full_name(case.celebrity)} {case.before}"
        request = Request(
            f"{book.full_name(person)} {case.after}", seed=3, source=image.digest, strength=0.8, was=was
        )  # fmt: skip
        for wanted, shares in ((request, outside), (replace(request, was=None, strength=0.6), plain)):
            (drawn,) = generate(bundle, backend, wanted, init_images=[image])
            pixels = np.asarray(drawn.image)
            shares.append(float((np.abs(pixels.astype(int) - before).max(2) > 8)[stays].mean()))
            if wanted.was:
                edited.append(pixels)
    obeyed = [case.new_facts.items() <= seen.items() for case, seen in zip(CASES, read_scenes(edited), strict=True)]
    print(f"obeyed {sum(obeyed)} of {len(obeyed)}; outside {np.mean(outside):.3f}, img2img {np.mean(plain):.3f}")
    assert sum(obeyed) >= 11 and np.mean(outside) < 0.07 < 0.3 < np.mean(plain)
