"""Choosing the engine that runs a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError, SetupError, out_of_range

from .base import Backend
from .device import parse_device
from .engines import read_records
from .openvino import OpenVinoBackend
from .ort import OrtBackend
from .tensorrt import TensorRtBackend
from .tensorrt_runner import Device

MAX_THREADS = 1024
_log = logging.getLogger(__name__)


def choose_backend(
    bundle: Bundle,
    device: str = "auto",
    *,
    engines: Path | None = None,
    threads: int | None = None,
    cuda_options: Mapping[str, str] | None = None,
    openvino_options: Mapping[str, str] | None = None,
) -> Backend:
    """The backend for a device.

    Args:
        bundle: The bundle to run.
        device: "auto", "cpu", "cuda", "trt", "openvino", "webgpu", "mlx" or "rtx"; "cuda:1" and "trt:1" are the second
            GPU. "auto" uses TensorRT where engines fit, ONNX Runtime elsewhere and logs a warning for every part that
            falls back.
        engines: Cache folder of TensorRT engines and graphs compiled by OpenVINO; None: no engines, no cache.
        threads: CPU threads, 1 to 1024, default one per physical core.
        cuda_options: Options of ONNX Runtime's CUDA provider, see :class:`OrtBackend`.
        openvino_options: Properties of OpenVINO's CPU plugin, see :class:`OpenVinoBackend`.

    Raises:
        UsageError: Unknown device or option of an engine, or a number of threads that no machine has.
        NotFoundError: "trt" without engines for this machine.
        SetupError: A package, driver or GPU is missing.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise out_of_range("threads", threads, 1, MAX_THREADS)
    spec = parse_device(device)
    if spec.kind == "trt":
        if engines is None:
            raise SetupError("TensorRT needs a folder of engines", "pass engines=FOLDER")
        return TensorRtBackend(bundle, engines, device=Device.load(spec))
    if spec.kind == "openvino":
        return OpenVinoBackend(bundle, engines, threads, openvino_options)
    if device == "auto" and engines is not None and read_records(engines, bundle.manifest):
        try:
            return TensorRtBackend(bundle, engines, fallback=lambda: OrtBackend(bundle, "auto", threads, cuda_options))
        except (SetupError, NotFoundError) as error:
            _log.warning("%s; using ONNX Runtime instead", error.problem)
    backend = OrtBackend(bundle, device, threads, cuda_options)
    backend.prepare(("step", "vae_decoder"))
    return backend
