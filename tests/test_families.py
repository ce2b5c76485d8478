"""All supported model families in learn, export and gen: the published structure at small width."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from family_fakes import lcm, sd1, sd2, sd3, sd_turbo, xl, xl_turbo

torch: Any = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("insightface")

from celebctl.learning.config import CLEAN  # noqa: E402
from celebctl.learning.prepared import prepare  # noqa: E402
from celebctl.learning.sampling import draw, rows_of  # noqa: E402
from celebctl.learning.subject import analyse_photo  # noqa: E402
from celebctl.learning.trainer import learn_people  # noqa: E402
from celebctl_export import ExportOptions, export_bundle  # noqa: E402
from celebctl_models.checkpoints.diffusion import guidance_embedding, load_parts  # noqa: E402
from celebctl_models.checkpoints.registry import CARD_FILE, card_for, locate  # noqa: E402
from celebctl_models.faces.analysis import OnnxFaceAnalyser  # noqa: E402
from celebctl_models.mini.world import draw_portrait  # noqa: E402
from celebctl_runtime.backends.ort import OrtBackend  # noqa: E402
from celebctl_runtime.pipeline import generate  # noqa: E402
from celebctl_runtime.request import Request  # noqa: E402

NAMES = ["ann bob", "anna alice", "alice person", "bob chess", "person beach", "chess anna", "beach ann"]


@dataclass(frozen=True)
class Family:
    """How a small member is written, and how its pictures are asked for."""

    name: str
    write: Callable[[Path], None]
    sampler: str
    guidance: float
    steps: int = 3
    encoders: int = 1


FAMILIES = [
    Family("sd1", sd1, "dpmpp_2m", 6.0),
    Family("sd2", sd2, "ddim", 6.0),
    Family("sd-turbo", sd_turbo, "euler_a", 0.0, steps=4),
    Family("lcm", lcm, "lcm", 8.0, steps=4),
    Family("sdxl", xl, "euler", 5.0, encoders=2),
    Family("sdxl-turbo", xl_turbo, "euler_a", 0.0, steps=1, encoders=2),
    Family("sd3", sd3, "euler", 5.0, encoders=2),
]


#: Exporting takes a minute each: by default one family per network structure, with `-m slow` the others.
EVERY_TIME = {"sd2", "lcm", "sdxl-turbo", "sd3"}
CASES = [
    pytest.param(family, id=family.name, marks=() if family.name in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
]


@pytest.mark.parametrize("family", CASES)
def test_learn_export_and_gen(family: Family, tmp_path: Path) -> None:
    """A person learned on the family is baked into its bundle, and the bundle draws what torch draws of them."""
    folder = tmp_path / family.name
    family.write(folder)
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / CARD_FILE).write_text(json.dumps({"names": "names.txt", "defaults": {"guidance": 8.0}}))
    parts = load_parts(folder)
    faces = card_for(locate("mini").path).faces_dir
    assert faces is not None and parts.guidance_is_embedded == (family.name == "lcm")
    subject = analyse_photo(OnnxFaceAnalyser(faces), draw_portrait(3, 128), "alice")
    config = replace(CLEAN, steps=2, views=2, learning_rate=0.2)
    (alice,) = learn_people(prepare(parts), [subject], config)
    assert len(alice.embeddings) == family.encoders and alice.provenance["init"] == "average"
    assert alice.provenance["framing"].endswith("(assumed)"), "mini's own framing is for mini alone"
    assert all(np.abs(np.asarray(units)).max() > 0 for units in alice.coefficients), "nothing was learned"
    bundle = export_bundle(parts, [alice], tmp_path / "bundle", ExportOptions(spare_rows=4))
    asked = Request("alice playing chess", seed=3, steps=family.steps, guidance=family.guidance, sampler=family.sampler)
    (made,) = generate(bundle, OrtBackend(bundle, "cpu", 1), asked)
    options: dict[str, Any] = {"steps": family.steps, "guidance": family.guidance, "sampler": family.sampler}
    expected = draw(parts, ["<alice> playing chess"], [3], {"alice": rows_of(alice)}, fast=False, **options)[0]
    assert np.abs(np.asarray(made.image).astype(int) - expected.astype(int)).max() <= 1


def test_the_guidance_embedding_is_that_of_diffusers() -> None:
    from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
        LatentConsistencyModelPipeline,
    )

    scales = torch.tensor([1.0, 4.5, 8.0])
    theirs = cast(Any, LatentConsistencyModelPipeline).get_guidance_scale_embedding(
        None, scales - 1.0, embedding_dim=16
    )
    torch.testing.assert_close(guidance_embedding(scales, 16), theirs)
