"""Stage 11: writes what was trained as a model folder like mini's, with ``concepts/car`` beside ``faces``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from celebctl_models.mini.illustration.captions import VOCABULARIES
from celebctl_models.mini.illustration.cars import CAR_FEATURES
from celebctl_models.mini.illustration.people import FEATURES
from celebctl_models.mini.names import NameBook
from celebctl_models.mini.training.assemble import CARD, UnitScale, save_faces, save_onnx
from celebctl_models.mini.training.networks import Detector

from .data import SIZE
from .readers import WIDEN

#: What the folder may weigh, bytes.
SIZE_LIMIT = 56_000_000


def save_reader(network: nn.Module, folder: Path, name: str, size: int, labels: dict[str, list[str]]) -> None:
    """A scoring network that takes bytes (B, 3, size, size), and its labels by the name of what it reads."""
    example = torch.zeros(2, 3, size, size)
    names, batch = (["pixels"], ["logits"]), torch.export.Dim.DYNAMIC
    save_onnx(UnitScale(network, normalise=False), example, folder / f"{name}.onnx", names, ({0: batch},))
    (folder / f"{name}.json").write_text(json.dumps(labels, indent=1) + "\n")


def save_judge(network: nn.Module, folder: Path) -> None:
    """The second recogniser: bytes (B, 3, 112, 112) to unit features."""
    names, batch = (["pixels"], ["feature"]), torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, 112, 112)
    save_onnx(UnitScale(network, normalise=True), example, folder / "judge.onnx", names, ({0: batch},))


def save_scoring(folder: Path, judge: nn.Module, statements: nn.Module, features: tuple[nn.Module, nn.Module]) -> None:
    """The networks of the evaluation; ``features``: the readers of people and of cars.

    features.json says beside the labels how many times wider than ArcFace's the crop of people is.
    """
    save_judge(judge, folder)
    labels = {name: list(words) for name, words in VOCABULARIES.items()}
    labels |= {"count": ["none", "one", "two", "three"], "car": ["no", "yes"]}
    save_reader(statements, folder, "attributes", SIZE, labels)
    for name, network, table in zip(("features", "car_features"), features, (FEATURES, CAR_FEATURES), strict=True):
        words = {feature: [word for word, _ in options] for feature, options in table.items()}
        save_reader(network, folder, name, 112, words)
    (folder / "crops.json").write_text(json.dumps({"features": WIDEN, "car_features": 1.0}, indent=1) + "\n")


def save_concept(folder: Path, recogniser: nn.Module, detector: Detector, book: NameBook, noun: str) -> None:
    """A concept beside people: its detector and recogniser in the contracts of faces, and its names."""
    save_faces(folder, recogniser, detector)
    (folder / "names.txt").write_text("\n".join(book.names) + "\n")
    (folder / "concept.json").write_text(json.dumps({"noun": noun, "names": "names.txt"}, indent=1) + "\n")


def save_card(folder: Path, book: NameBook) -> None:
    """The list of celebrity names and the model card."""
    card = {
        **CARD,
        "native_size": SIZE,
        "display_scale": 4,
        "world": "illustration",
        "concepts": {"car": "concepts/car"},
    }
    (folder / "names.txt").write_text("\n".join(book.names) + "\n")
    (folder / "celebctl.json").write_text(json.dumps(card, indent=1) + "\n")


def size_report(folder: Path) -> str:
    """Megabytes of each part and of everything, beside the limit."""
    parts: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            part = path.relative_to(folder).parts[0]
            parts[part] = parts.get(part, 0) + path.stat().st_size
    total = sum(parts.values())
    said = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in parts.items() if size > 50_000)
    verdict = "within" if total <= SIZE_LIMIT else "OVER"
    return f"{total / 1e6:.1f} MB, {verdict} the limit of {SIZE_LIMIT / 1e6:.0f}: {said}"
