"""Somebody about to be learned on a tiny model: a portrait of mini's world, and names that the tiny tokenizer knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celebctl_models.checkpoints.registry import card_for, locate

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl_models.checkpoints.diffusion import DiffusionParts

NAMES = "ann bob\nanna alice\nalice person\nbob chess\nperson beach\nchess anna\nbeach ann"


def load_named(folder: Path, **options: Any) -> DiffusionParts:
    """A tiny pipeline with names of its own, of which a celeb basis can be made."""
    from celebctl_models.checkpoints.diffusion import load_parts

    names = folder.parent / f"{folder.name}-names.txt"
    names.write_text(NAMES)
    parts = load_parts(folder, **options)
    return replace(parts, card=replace(parts.card, names_file=names))


def begin(parts: DiffusionParts, **dials: Any) -> Any:
    """A Sitting at step 0, in exact arithmetic: nothing is cast to bfloat16 on the way."""
    from celebctl.basis.basis import build_basis
    from celebctl.learning.config import CLEAN
    from celebctl.learning.trainer import PersonTrainer
    from celebctl_models.faces.analysis import InsightFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    folder = card_for(locate("mini").path).faces_dir
    assert folder is not None
    photo = draw_portrait(3, 128)
    faces = InsightFaceAnalyser(folder).analyse(photo)
    config = replace(CLEAN, **{"steps": 4, "views": 2, "seed": 5, **dials})
    trainer = PersonTrainer.create(parts, build_basis(parts), [photo], faces, config, 64)
    trainer.denoiser.fast = False
    return trainer
