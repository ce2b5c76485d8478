"""Export a model and people as a bundle: ONNX graphs, token tables with the people's rows, a manifest.

Exporting needs torch and onnx (the ``export`` extra), TensorRT engines the ``trt`` extra; bundles need neither. Nothing
heavy is imported before a function is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import FILE_NAME
from celebctl_runtime.errors import IntegrityError, InvalidInputError, SetupError, UsageError
from celebctl_runtime.files import atomic_directory
from celebctl_runtime.identity import TOKENS, Identity
from celebctl_runtime.progress import Progress, ProgressCallback, ignore_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_runtime.backends.engines import EngineRecord

__all__ = ["SPARE_ROWS", "ExportOptions", "build_engines", "export_bundle"]

SPARE_ROWS = 256  # two per person
DTYPES = ("fp32", "fp16")


@dataclass(frozen=True)
class ExportOptions:
    """What a bundle contains besides the model and people.

    Attributes:
        spare_rows: Token rows reserved for people, two each; None: 256, or twice as many as the people need.
        dtype: Of UNet and VAE, "fp32" or "fp16"; text encoders stay float32.
        average: Embeddings of the average celebrity, (2, D) for each text encoder, which scaling the likeness needs;
            None: that is not possible with the bundle.
    """

    spare_rows: int | None = None
    dtype: Literal["fp32", "fp16"] = "fp32"
    average: Sequence[NDArray[np.float32]] | None = None


def export_bundle(
    parts: DiffusionParts,
    identities: Sequence[Identity],
    path: Path,
    options: ExportOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Bundle:
    """Export a model with people as the bundle folder ``path``, replacing a bundle there.

    Every graph is compared with torch before the folder gets its name: when an export fails, an earlier bundle stays
    as it was.

    Args:
        parts: The model, on any device.
        identities: People to include; more can be added later.
        path: The bundle's folder.
        options: See :class:`ExportOptions`.
        progress: Called with each stage.

    Raises:
        UsageError: Invalid options, a name used twice, too few spare rows, or a folder with other files.
        InvalidInputError: An unsupported kind of model.
        IntegrityError: People of another model, or a graph that does not reproduce torch's outputs.
        SetupError: Missing packages or disk space.
    """
    _require_packages()
    from celebctl_export.latent_rgb import fit_latent_rgb
    from celebctl_export.manifest_builder import build_manifest
    from celebctl_export.write import write_average, write_graphs

    options = options or ExportOptions()
    spare_rows = max(SPARE_ROWS, 2 * TOKENS * len(identities)) if options.spare_rows is None else options.spare_rows
    _check_folder(path)
    _check_options(spare_rows, options.dtype)
    _check_model(parts)
    _check_identities(parts, identities, spare_rows)
    with atomic_directory(path) as folder:
        graphs, variants, parity = write_graphs(parts, folder, spare_rows, options.dtype, progress)
        progress(Progress("writing the manifest"))
        manifest = build_manifest(parts, graphs, variants, parity, spare_rows=spare_rows, dtype=options.dtype)
        manifest = replace(manifest, latent_rgb=fit_latent_rgb(parts))
        if options.average is not None:
            manifest = replace(manifest, average=write_average(options.average, folder))
        bundle = Bundle.seal(folder, manifest)
        for identity in identities:
            bundle.add(identity)
    return Bundle.open(path)


def build_engines(
    bundle: Bundle,
    engines: Path,
    sizes: Sequence[tuple[int, int, int]] = (),
    *,
    dynamic: bool = True,
    device: str = "trt",
    progress: ProgressCallback = ignore_progress,
) -> list[EngineRecord]:
    """Build and measure the missing TensorRT engines of a bundle for a GPU of this machine.

    An engine that fails is logged, and the others are built. Then the first error is raised.

    Args:
        bundle: An exported bundle.
        engines: Cache folder of engines.
        sizes: (batch, height, width) to optimize for, in images and pixels; the native size if empty.
        dynamic: Also build engines for the sizes around the native one.
        device: "trt", or a GPU by its number, such as "trt:1".
        progress: Called with percent of one engine.

    Returns:
        The records of all planned engines, in order, built now or before.

    Raises:
        UsageError: A size that the model does not support, or an engine with more elements in a tensor than TensorRT
            counts.
        InvalidInputError: A graph with nodes that TensorRT does not support.
        IntegrityError: A damaged bundle, or an engine that does not reproduce ONNX Runtime's outputs.
        SetupError: TensorRT, Polygraphy, CUDA or a GPU is missing, or memory is too small.
    """
    from celebctl_export.tensorrt_parity import parity_check
    from celebctl_export.tensorrt_plan import EngineSize, plan_engines
    from celebctl_export.to_tensorrt import build_plans
    from celebctl_runtime.backends.device import parse_device
    from celebctl_runtime.backends.tensorrt_runner import Device

    plans = plan_engines(bundle.manifest, [EngineSize(*size) for size in sizes], dynamic=dynamic)
    place = Device.load(parse_device(device))
    return build_plans(bundle, plans, engines, measure=parity_check(bundle), progress=progress, device=place)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise SetupError(f"exporting needs {', '.join(missing)}", 'pip install "celebctl[export,cpu]"')


def _check_folder(path: Path) -> None:
    """An export replaces a whole folder, so it must be a bundle, empty or missing."""
    if path.is_dir() and not (path / FILE_NAME).is_file() and any(path.iterdir()):
        raise UsageError(f"{path} contains files that are not a bundle", "choose a new folder", path=path)


def _check_options(spare_rows: int, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", f"use {' or '.join(DTYPES)}", reason="unknown_dtype", dtype=dtype)
    if spare_rows < TOKENS or spare_rows % TOKENS:
        raise UsageError(f"invalid number of spare rows: {spare_rows}", "use an even number: two rows per person")


def _check_model(parts: DiffusionParts) -> None:
    from celebctl_models.checkpoints.checkpoint_layout import refuse_channels

    refuse_channels(parts.name, int(parts.denoiser.config.in_channels), parts.latent_channels)
    if any(not hasattr(encoder, "text_projection") for encoder in parts.text_encoders[1:]):
        raise InvalidInputError(
            f"the second text encoder of {parts.name} has no pooled output",
            "use a Stable Diffusion 1.x, 2.x or XL checkpoint",
        )


def _check_identities(parts: DiffusionParts, identities: Sequence[Identity], spare_rows: int) -> None:
    """Check names, number and model before minutes of exporting."""
    counts = Counter(identity.name for identity in identities)
    for name in (name for name, count in counts.items() if count > 1):
        raise UsageError(f"two people are named {name!r}", "rename one of them", reason="duplicate_name", name=name)
    rows = TOKENS * len(identities)
    if rows > spare_rows:
        problem = f"{len(identities)} people need {rows} spare rows, not {spare_rows}"
        raise UsageError(problem, f"use spare_rows={rows}", reason="too_few_spare_rows", rows=rows)
    for identity in identities:
        if (identity.family, identity.table_hash) != (parts.family, parts.table_hash):
            raise IntegrityError(
                f"{identity.name!r} was learned for another model ({identity.family}, {identity.table_hash[:8]})"
                f" than {parts.name} ({parts.family}, {parts.table_hash[:8]})",
                f"learn {identity.name} for {parts.name}",
                reason="other_model",
                name=identity.name,
                model=parts.name,
            )
