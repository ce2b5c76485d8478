"""The last stage: writes everything that was trained as the model folder that ships.

A plain diffusers StableDiffusionPipeline layout (fp16 safetensors) with, beside it, ``faces/`` for insightface's
loader, ``scoring/`` for the evaluation only, ``names.txt`` and ``celebctl.json``, the model card.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from celebctl_models.mini.names import NameBook

from .data import FACTS
from .denoiser import SCHEDULE
from .networks import AttributeReader, Detector
from .text import SIZES
from .trainer import TrainingContext

CARD = {
    "name": "mini",
    "family": "sd",
    "licence": "Apache-2.0",
    "native_size": 64,
    "display_scale": 4,
    "defaults": {"steps": 20, "guidance": 2.5, "sampler": "ddim"},
    "class_noun": "person",
    "pictures": "drawings",
    "world": "mini",
    # tuned on mini's own scenes (benchmarks/LOG.md); measuring the celebrities' faces comes near it
    "framing": {"face_height_min": 0.52, "face_height_max": 0.60, "face_center_y": 0.485, "face_jitter": 0.025},
    "names": "names.txt",
    "mapper": "mapper.safetensors",
    "faces": "faces",
    "scoring": "scoring",
}


class UnitScale(nn.Module):
    """A scorer that takes bytes: (B, 3, S, S) in [0, 255] RGB -> what the network makes of [-1, 1]."""

    def __init__(self, network: nn.Module, *, normalise: bool) -> None:
        super().__init__()
        self.network, self.normalise = network, normalise

    def forward(self, pixels: Tensor) -> Tensor:
        made = self.network(pixels / 127.5 - 1.0)
        return nn.functional.normalize(made, dim=1) if self.normalise else made


def save_onnx(
    network: nn.Module, example: Tensor, path: Path, names: tuple[list[str], list[str]], dynamic: Any
) -> None:
    """Weights rounded to fp16 and stored so, computed in fp32 (a Cast behind each): half the bytes, any runtime."""
    import onnx

    network = cast(Any, network.float().eval()).to(memory_format=torch.contiguous_format)
    program = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
        network,
        (example,),
        dynamo=True,
        input_names=names[0],
        output_names=names[1],
        dynamic_shapes=dynamic,
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    model = strip_traces(halve_weights(program.model_proto))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))  # pyright: ignore[reportUnknownMemberType]


def halve_weights(model: Any) -> Any:
    """Every fp32 initializer of 256 numbers or more becomes fp16 + Cast."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    cast_nodes: list[Any] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < 256:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + "_half"))
        cast_nodes.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    for node in reversed(cast_nodes):
        model.graph.node.insert(0, node)
    return model


def strip_traces(model: Any) -> Any:
    """The exporter notes where in whose source each node was made: half the file, and paths of one machine."""
    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    return model


def save_diffusion(folder: Path, vae: Any, text: Any, unet: Any, tokenizer: Any) -> None:
    """What StableDiffusionPipeline.save_pretrained writes.

    vae, text_encoder, unet, tokenizer, scheduler and model_index.json.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    pipeline = cast(Any, StableDiffusionPipeline)(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float32)
    # transformers loads in the dtype the config names, diffusers in float32: without this they would not meet
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def save_faces(folder: Path, recogniser: nn.Module, detector: Detector) -> None:
    """Detector and recogniser as ONNX files that insightface's loader reads."""
    batch = torch.export.Dim.DYNAMIC
    save_onnx(
        recogniser, torch.zeros(2, 3, 112, 112), folder / "recogniser.onnx", (["input.1"], ["feature"]), ({0: batch},)
    )
    outputs = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in Detector.STRIDES]
    save_onnx(detector, torch.zeros(1, 3, 128, 128), folder / "detector.onnx", (["input.1"], outputs), None)
    settings = {"name": "mini", "det_size": [128, 128], "det_thresh": 0.5, "min_face": 16}
    (folder / "faces.json").write_text(json.dumps(settings, indent=1) + "\n")


def save_scoring(folder: Path, judge: nn.Module, attributes: AttributeReader) -> None:
    """The networks of the evaluation: the second recogniser and the attribute reader with its labels."""
    from celebctl_models.mini.figure import EXPRESSIONS, WORN
    from celebctl_models.mini.scenes import ACTS, PLACES, STYLES

    batch = torch.export.Dim.DYNAMIC
    save_onnx(
        UnitScale(judge, normalise=True),
        torch.zeros(2, 3, 112, 112),
        folder / "judge.onnx",
        (["pixels"], ["feature"]),
        ({0: batch},),
    )
    save_onnx(
        UnitScale(attributes, normalise=False),
        torch.zeros(2, 3, 64, 64),
        folder / "attributes.onnx",
        (["pixels"], ["logits"]),
        ({0: batch},),
    )
    labels = dict(zip(FACTS, [["one", "two"], PLACES, ACTS, EXPRESSIONS, WORN, STYLES], strict=True))
    assert tuple(len(v) for v in labels.values()) == SIZES
    (folder / "attributes.json").write_text(json.dumps({k: list(v) for k, v in labels.items()}, indent=1) + "\n")


def save_card(folder: Path, book: NameBook) -> None:
    """The list of celebrity names and the model card."""
    (folder / "names.txt").write_text("\n".join(book.names) + "\n")
    (folder / "celebctl.json").write_text(json.dumps(CARD, indent=1) + "\n")


def copy(source: Path, target: Path) -> None:
    """Take over what this training does not change."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def report_size(run: TrainingContext, folder: Path) -> None:
    """Print the size of the folder."""
    files = sorted((p.stat().st_size, p) for p in folder.rglob("*") if p.is_file())
    run.say(f"{folder}: {sum(s for s, _ in files) / 1e6:.1f} MB in {len(files)} files")
