"""From a model and learned people to a bundle: ONNX graphs, token tables with the people baked in, a manifest.

Needs torch and onnx (the `export` extra); what comes out needs neither. Nothing heavy is imported before the verb is
used. What this room does not know: how people are learned, where bundles are kept, what the command line looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FILE_NAME
from celebctl_runtime.errors import InvalidInputError, SetupError, UsageError
from celebctl_runtime.files import atomic_directory
from celebctl_runtime.identity import Identity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.diffusion import DiffusionParts

__all__ = ["SPARE_ROWS", "export_bundle"]

SPARE_ROWS = 256  # two a person


def _ignore(_stage: str) -> None:
    return None


def export_bundle(
    parts: DiffusionParts,
    identities: Sequence[Identity],
    out: Path,
    *,
    spare_rows: int = SPARE_ROWS,
    dtype: Literal["fp32", "fp16"] = "fp32",
    average: Sequence[NDArray[np.float32]] | None = None,
    on_stage: Callable[[str], None] = _ignore,
) -> Bundle:
    """Write the bundle of a model with `identities` baked in to the directory `out`, replacing a bundle there.

    The graphs are measured against torch before anything takes its final name: when the export fails for any reason,
    a bundle that was there before stays as it was. `spare_rows` token rows are reserved for people, two each; `dtype`
    is that of UNet and autoencoder. `average`: token rows of the average celebrity, (2, D) for each text encoder, for
    the likeness dial; without them the bundle has none. `on_stage` hears what is being done, in a few words.
    Raises InvalidInputError (a kind of model that is not supported), UsageError, IntegrityError (people of another
    model, parity above its floor) or SetupError (missing packages, disk).
    """
    _require_packages()
    from celebctl_export.add_people import add_people, check_identities
    from celebctl_export.manifest_builder import build_manifest
    from celebctl_export.write import write_average, write_graphs

    _check_place(out)
    _check_options(spare_rows, dtype)
    _check_model(parts)
    check_identities(parts, identities, spare_rows)
    with atomic_directory(out) as folder:
        graphs, variants, measured = write_graphs(parts, folder, spare_rows=spare_rows, dtype=dtype, on_stage=on_stage)
        on_stage("token rows and manifest")
        manifest = build_manifest(parts, graphs, variants, measured, spare_rows=spare_rows, dtype=dtype)
        if average is not None:
            manifest = replace(manifest, average=write_average(average, folder))
        bundle = Bundle.seal(folder, manifest)
        add_people(bundle, identities)
    return Bundle.open(out)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise SetupError(f"exporting needs {', '.join(missing)}", 'pip install "celebctl[export,cpu]"')


def _check_place(out: Path) -> None:
    """An export replaces a whole directory, so it must be a bundle, or nothing."""
    if out.is_dir() and not (out / FILE_NAME).is_file() and any(out.iterdir()):
        raise UsageError(f"{out} holds other files than a bundle", "name a directory that does not exist yet")


def _check_options(spare_rows: int, dtype: str) -> None:
    if dtype not in ("fp32", "fp16"):
        raise UsageError(f"there is no dtype {dtype!r}", "use fp32 or fp16")
    if spare_rows < 2 or spare_rows % 2:
        raise UsageError(f"{spare_rows} spare rows cannot hold people, who take two each", "use an even number")


def _check_model(parts: DiffusionParts) -> None:
    wanted: Any = parts.unet.config.in_channels
    if wanted != parts.latent_channels:
        raise InvalidInputError(
            f"the UNet of {parts.name} takes {wanted} channels, not {parts.latent_channels}",
            "use a plain text-to-image checkpoint, not one for inpainting or depth",
        )
    if any(not hasattr(encoder, "text_projection") for encoder in parts.text_encoders[1:]):
        raise InvalidInputError(
            f"the second text encoder of {parts.name} writes no pooled text",
            "use a Stable Diffusion 1.x, 2.x or XL checkpoint",
        )
