"""A device is named by its kind, and a GPU of several by its number."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundle_fakes import write_bundle
from hypothesis import given
from hypothesis import strategies as st

from celebctl_runtime.backends.device import DEVICES, DeviceSpec, parse_device
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.ort_session import CPU, CUDA, choose_providers
from celebctl_runtime.errors import SetupError, UsageError


def test_a_name_is_a_kind_and_a_number() -> None:
    assert [parse_device(name) for name in DEVICES] == [DeviceSpec(name) for name in DEVICES]
    assert parse_device("cuda:1") == DeviceSpec("cuda", 1) and parse_device("trt:12") == DeviceSpec("trt", 12)
    assert parse_device("cuda:0") == parse_device("cuda")
    others = ("cpu:0", "auto:1", "rtx:1", "openvino:0")
    for wrong in (*others, "", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:1 ", "cuda:１", "cuda:9999", "trt1"):
        with pytest.raises(UsageError) as caught:
            parse_device(wrong)
        assert caught.value.reason == "unknown_device" and caught.value.values["device"] == wrong


@given(kind=st.sampled_from(["cuda", "trt"]), index=st.integers(0, 999))
def test_a_device_is_written_as_it_is_read(kind: str, index: int) -> None:
    assert parse_device(str(DeviceSpec(kind, index))) == DeviceSpec(kind, index)


def test_a_number_must_be_that_of_a_gpu() -> None:
    parse_device("cuda:1").check_index(2)
    for gpus, name, last in ((1, "cuda:1", "cuda"), (2, "trt:7", "trt:1"), (0, "cuda", "cpu")):
        with pytest.raises(SetupError) as caught:
            parse_device(name).check_index(gpus)
        assert caught.value.reason == "no_such_gpu" and caught.value.values["gpus"] == gpus
        assert caught.value.hint == f"use {last}"


def driver(gpus: int) -> Any:
    """A CUDA driver that counts so many GPUs, once it is initialized."""
    found = [0]

    def initialize(_: int) -> int:
        found[0] = gpus
        return 0

    def count(place: Any) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = found[0]
        return 0

    return SimpleNamespace(cuInit=initialize, cuDeviceGetCount=count)


def test_onnx_runtime_is_asked_for_a_gpu_that_exists() -> None:
    ort = SimpleNamespace(get_available_providers=lambda: [CUDA, CPU])
    assert choose_providers(ort, parse_device("cuda:1"), lambda _: driver(2)) == [CUDA, CPU]
    with pytest.raises(SetupError) as caught:
        choose_providers(ort, parse_device("cuda:2"), lambda _: driver(2))
    assert (caught.value.reason, caught.value.values["gpus"]) == ("no_such_gpu", 2)

    def missing(name: str) -> object:
        raise OSError(name)

    # Without a driver the first session says so, which is the better explanation.
    assert choose_providers(ort, parse_device("cuda:2"), missing) == [CUDA, CPU]


def test_the_gpu_is_chosen_by_the_device_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device_id"):
        OrtBackend(write_bundle(tmp_path / "bundle"), "cuda", cuda_options={"device_id": "1"})
