"""Plug-in execution providers: a device is found, used, missing, or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle

from celebctl.cli import main
from celebctl.cli.hints import hint_for
from celebctl.learning.device import select_device
from celebctl_runtime.backends import ort_plugins
from celebctl_runtime.backends.device import DEVICES
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.ort_plugins import PLUGINS, Plugin, plugin_device
from celebctl_runtime.backends.ort_session import load_onnxruntime
from celebctl_runtime.errors import SetupError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request


@dataclass
class FakeRuntime:
    """onnxruntime's registry of plug-ins; a library offers the devices that `offers` names."""

    offers: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    failure: str = ""
    registered: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.failure:
            raise RuntimeError(self.failure)
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        names = [name for _, path in self.registered for name in self.offers.get(path, [])]
        return [SimpleNamespace(ep_name=name) for name in ("CPUExecutionProvider", *names)]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(name: str, **content: Any) -> None:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))  # type: ignore[arg-type]

    return put


@pytest.mark.parametrize("function", ["get_library_path", "library_path"])
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_is_registered_once_and_gives_its_device(
    install: Callable[..., None], name: str, function: str
) -> None:
    plugin = PLUGINS[name]
    install(plugin.package.replace("-", "_"), **{function: lambda: "lib.so"})
    runtime = FakeRuntime({"lib.so": [plugin.provider]})
    assert plugin_device(runtime, name).ep_name == plugin.provider
    assert plugin_device(runtime, name).ep_name == plugin.provider
    assert runtime.registered == [(plugin.provider, "lib.so")]


def test_what_is_missing_is_named(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(SetupError) as absent:
        plugin_device(FakeRuntime(), "webgpu")
    assert absent.value.reason == "provider_not_installed" and "onnxruntime-ep-webgpu" in hint_for(absent.value)
    install("onnxruntime_ep_webgpu", get_library_path=lambda: "lib.so")
    for failure, reason in (("", "provider_without_device"), ("no such symbol", "provider_failed")):
        with pytest.raises(SetupError) as caught:
            plugin_device(FakeRuntime(failure=failure), "webgpu")
        assert caught.value.reason == reason and failure in caught.value.problem
    with pytest.raises(SetupError) as again:
        plugin_device(FakeRuntime(failure="EP library is already registered under webgpu"), "webgpu")
    assert again.value.reason == "provider_without_device"


def test_sessions_run_on_the_device_of_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's real path for plug-in devices, with the device that every machine has: that of the CPU."""
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice", 1))
    monkeypatch.setitem(ort_plugins.PLUGINS, "webgpu", Plugin("CPUExecutionProvider", "none"))
    backend, request = OrtBackend(bundle, "webgpu", 1), Request("alice", seed=1, steps=3)
    backend.prepare(("step",))
    drawn, expected = (generate(bundle, one, request)[0] for one in (backend, OrtBackend(bundle, "cpu", 1)))
    assert np.array_equal(np.asarray(drawn.image), np.asarray(expected.image))
    assert drawn.record["backend"]["device"] == "webgpu" and backend.batch_limit == 1


def test_a_session_without_the_plug_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    monkeypatch.setitem(ort_plugins.PLUGINS, "webgpu", Plugin("CPUExecutionProvider", "none"))
    backend = OrtBackend(bundle, "webgpu", 1)
    monkeypatch.setitem(ort_plugins.PLUGINS, "webgpu", PLUGINS["webgpu"].__class__("OtherProvider", "none"))
    with pytest.raises(SetupError) as caught:
        generate(bundle, backend, Request("a photo", steps=2))
    assert caught.value.reason == "provider_unused"


def test_the_real_webgpu_package_loads_or_says_that_there_is_no_device() -> None:
    pytest.importorskip("onnxruntime_ep_webgpu")
    try:
        assert plugin_device(load_onnxruntime(), "webgpu").ep_name == PLUGINS["webgpu"].provider
    except SetupError as error:
        assert error.reason == "provider_without_device"


def test_devices_that_only_draw_learn_as_usual() -> None:
    assert set(PLUGINS) < set(DEVICES)
    assert {select_device(name) for name in (*PLUGINS, "openvino")} == {select_device("auto")}


def test_the_command_line_ends_with_the_documented_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_mlx", None)
    words = ["gen", "a photo", "--bundle", str(bundle.path), "--device", "mlx"]
    assert main(words) == SetupError.exit_code
    assert "pip install onnxruntime-ep-mlx" in capsys.readouterr().err
