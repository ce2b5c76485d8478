"""A person to learn on a tiny model: a drawn portrait, and names that the tiny tokenizer knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celebctl_models.checkpoints.registry import card_for, locate

if TYPE_CHECKING:
    from pathlib import Path

    from celebctl.learning.trainer import PersonTrainer
    from celebctl_models.checkpoints.diffusion import DiffusionParts

NAMES = "ann bob\nanna alice\nalice person\nbob chess\nperson beach\nchess anna\nbeach ann"


def load_named(folder: Path, **options: Any) -> DiffusionParts:
    """A tiny pipeline with names of its own, of which a celeb basis can be made."""
    from celebctl_models.checkpoints.diffusion import load_parts

    names = folder.parent / f"{folder.name}-names.txt"
    names.write_text(NAMES)
    parts = load_parts(folder, **options)
    return replace(parts, card=replace(parts.card, names_file=names))


def new_trainer(parts: DiffusionParts, **settings: Any) -> PersonTrainer:
    """A trainer at step 0, in float32 throughout."""
    from celebctl.learning.config import CLEAN
    from celebctl.learning.prepared import prepare
    from celebctl.learning.subject import analyse_photo
    from celebctl.learning.trainer import PersonTrainer
    from celebctl_models.faces.analysis import OnnxFaceAnalyser
    from celebctl_models.mini.world import draw_portrait

    folder = card_for(locate("mini").path).faces_dir
    assert folder is not None
    subject = analyse_photo(OnnxFaceAnalyser(folder), draw_portrait(3, 128), "ann")
    config = replace(CLEAN, **{"steps": 4, "views": 2, "seed": 5, **settings})
    trainer = PersonTrainer(prepare(parts), [subject], config)
    trainer.denoising_loss.autocast = False
    return trainer
