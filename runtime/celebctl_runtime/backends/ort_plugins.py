"""Plug-in execution providers of ONNX Runtime: packages of their own, which bring a shared library.

The library is registered when its device is asked for; then :func:`get_ep_devices` of ONNX Runtime lists what it can
use on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from celebctl_runtime.errors import SetupError


@dataclass(frozen=True)
class Plugin:
    """``provider``: its name in ONNX Runtime. ``package``: on PyPI; the module has underscores instead of hyphens."""

    provider: str
    package: str


#: By the name of the device.
PLUGINS = {
    "webgpu": Plugin("WebGpuExecutionProvider", "onnxruntime-ep-webgpu"),
    "mlx": Plugin("MLXExecutionProvider", "onnxruntime-ep-mlx"),
    "rtx": Plugin("NvTensorRTRTXExecutionProvider", "onnxruntime-ep-nv-tensorrt-rtx"),
}


def plugin_device(ort: Any, name: str) -> Any:
    """The first OrtEpDevice (untyped) of the plug-in for device ``name``.

    Raises SetupError when its package is missing or broken, or offers no device on this machine.
    """
    plugin = PLUGINS[name]
    found = _devices(ort, plugin)
    if not found:  # not registered yet
        _register(ort, plugin)
        found = _devices(ort, plugin)
    if not found:
        problem = f"{plugin.package} offers no device on this machine"
        raise SetupError(problem, "use device='cpu'", reason="provider_without_device", package=plugin.package)
    return found[0]


def _devices(ort: Any, plugin: Plugin) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == plugin.provider]


def _register(ort: Any, plugin: Plugin) -> None:
    try:
        module: Any = import_module(plugin.package.replace("-", "_"))
    except ImportError as error:
        problem = f"{plugin.package} is not installed"
        hint = f"pip install {plugin.package}"
        raise SetupError(problem, hint, reason="provider_not_installed", package=plugin.package) from error
    library = getattr(module, "get_library_path", None) or module.library_path
    try:
        ort.register_execution_provider_library(plugin.provider, library())
    except Exception as error:  # onnxruntime has a dozen error types without a common root
        if "already registered" in str(error):
            return
        problem = f"ONNX Runtime cannot load {plugin.package}: {' '.join(str(error).split())[-200:]}"
        hint = "install versions that fit, or use device='cpu'"
        raise SetupError(problem, hint, reason="provider_failed", package=plugin.package) from error
