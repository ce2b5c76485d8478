"""Hints of the command line: for the ``reason`` of an error, the command or option that helps.

Library code does not know the command line. It raises errors with a ``reason`` and named ``values``; the texts here
are formatted with those values. A test parses every ``celebctl`` command below with the application.
"""

import shlex

from celebctl_runtime.errors import CelebctlError

#: Python packages: celebctl_runtime.
RUNTIME: dict[str, str] = {}

#: celebctl_export, celebctl_runtime.backends.
EXPORT: dict[str, str] = {
    "broken_engine": "build the engines again: celebctl export --trt",
    "broken_graph": "export the bundle again: celebctl export",
    "cuda_failed": "check nvidia-smi, or use --device cpu",
    "cuda_libraries_missing": "pip install 'onnxruntime-gpu[cuda,cudnn]' {cublas}, or use --device cpu",
    "cuda_run_failed": "check nvidia-smi, set cuda_options to enable_cuda_graph=0, or use --device cpu",
    "driver_missing": "install the NVIDIA driver and check nvidia-smi, or use --device cpu",
    "driver_too_old": "check nvidia-smi and update the NVIDIA driver, or use --device cpu",
    "duplicate_name": "rename one of them: celebctl rename {name} NEW_NAME",
    "engine_parity": "export with --dtype fp32 and build again; if that fails too, report it with all versions",
    "export_failed": "this model or version of torch is not supported: run with --debug and report it",
    "invalid_engine_size": "write BATCHxHEIGHTxWIDTH, such as --engine 1x512x512",
    "no_engine_fits": "use --device auto, or build one: celebctl export --trt --engine {size}",
    "no_engines": "build them: celebctl export --trt",
    "no_img2img": "use --device cpu or --device cuda",
    "ort_without_cuda": "pip uninstall onnxruntime; pip install 'celebctl[cuda]', or use --device cpu",
    "out_of_gpu_memory": "use a smaller --size, fewer images at once, or --device cpu",
    "out_of_memory": "use a smaller --size, or close other programs",
    "parity": "try --dtype fp32; if that fails too, this model or version of torch is not supported",
    "tensorrt_failed": "check nvidia-smi, use --device cpu, or build the engines again: celebctl export --trt",
    "tensorrt_unavailable": "pip install 'celebctl[trt]', or use --device cpu",
    "too_few_spare_rows": "use --spare-rows {rows}",
    "unknown_device": "use --device auto, cpu, cuda or trt",
    "unknown_dtype": "use --dtype fp32 or fp16",
    "unsupported_graph": "list what TensorRT does not support: celebctl export --check",
}

#: celebctl_models: checkpoints, faces.
MODELS: dict[str, str] = {}

#: celebctl.learning, celebctl.basis, celebctl.mapper_training, celebctl.model.
LEARNING: dict[str, str] = {}

#: celebctl.library, celebctl.settings, celebctl.textual_inversion, celebctl.pipeline, celebctl.doctor.
LIBRARY: dict[str, str] = {}

#: celebctl.evaluation, celebctl.bench.
EVALUATION: dict[str, str] = {}

HINTS: dict[str, str] = {**RUNTIME, **EXPORT, **MODELS, **LEARNING, **LIBRARY, **EVALUATION}


def hint_for(error: CelebctlError) -> str:
    """The hint to print: the command line's own where there is one and all its values are known, else the error's."""
    template = HINTS.get(error.reason)
    if template is None:
        return error.hint
    try:
        return template.format(**{name: shlex.quote(str(value)) for name, value in error.values.items()})
    except KeyError:
        return error.hint
