"""TensorRT on a fake device: the same images as ONNX Runtime, one launch per run, one copy of two rows per person, and
clear errors where an engine is missing, of another machine or too large."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray
from tensorrt_fakes import GPU, CudaError, FakeCudart, FakeTrt, fake_device

from celebctl_export.tensorrt_plan import EngineSize, plan_engines
from celebctl_export.to_tensorrt import build_plans
from celebctl_runtime.backends import nvidia_driver, tensorrt_runner
from celebctl_runtime.backends.base import Conditioning
from celebctl_runtime.backends.cuda_memory import Cuda, DeviceBuffer, Stream
from celebctl_runtime.backends.engines import find_records
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.select import choose_backend
from celebctl_runtime.backends.tensorrt import TensorRtBackend
from celebctl_runtime.backends.tensorrt_runner import Device, Session, TensorRt
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import NotFoundError, SetupError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.progress import Progress
from celebctl_runtime.request import SAMPLERS, Request, batch
from celebctl_runtime.sampling.noise import initial_noise, step_noise
from celebctl_runtime.sampling.samplers import step_table

ROW = 8 * 4  # bytes of a token row in the toy bundle


class Bench:
    """A toy bundle with engines, and the fake machine they were built on."""

    def __init__(self, path: Path, *sizes: str, dynamic: bool = False, room: int = 1 << 30) -> None:
        self.bundle = write_bundle(path / "bundle", spare_rows=16)
        self.bundle.add(make_identity("alice", 1))
        self.bundle.add(make_identity("bob", 2))
        self.trt, self.cudart, self.device = fake_device(room)
        self.engines = path / "engines"
        self.build(*sizes, dynamic=dynamic)

    def build(self, *sizes: str, dynamic: bool = False) -> None:
        plans = plan_engines(self.bundle.manifest, [EngineSize.parse(size) for size in sizes], dynamic=dynamic)
        build_plans(self.bundle, plans, self.engines, device=self.device)

    def backend(self, *, falls_back: bool = False, **changes: Any) -> TensorRtBackend:
        def fallback() -> OrtBackend:
            return OrtBackend(self.bundle, "cpu", 1)

        options: dict[str, Any] = {"device": self.device, **changes}
        return TensorRtBackend(self.bundle, self.engines, fallback=fallback if falls_back else None, **options)

    def expected(self, request: Request) -> NDArray[Any]:
        return pixels(self.bundle, OrtBackend(self.bundle, "cpu", 1), request)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "1x32x32")


def pixels(bundle: Bundle, backend: Any, request: Request) -> NDArray[Any]:
    return np.asarray(generate(bundle, backend, request)[0].image)


def inputs(bundle: Bundle, sampler: str, pictures: int = 1, guides: int = 2) -> tuple[Any, ...]:
    """State, noise per step, texts and plan for some pictures of the toy bundle."""
    steps, shape = step_table(sampler, bundle.schedule, 5, 2.5), (4, 8, 8)
    first = np.stack([initial_noise(seed, shape) for seed in range(pictures)])
    state = np.stack([first * np.float32(steps.init_sigma), np.zeros_like(first)])
    context = np.random.default_rng(0).standard_normal((guides, pictures, 77, 8), dtype=np.float32)

    def noise(index: int) -> NDArray[np.float32]:
        return np.stack([step_noise(seed, index, shape) for seed in range(pictures)]) if steps.uses_noise else first

    return state, noise, Conditioning(context), steps


def stepwise(backend: Any, state: Any, noise: Any, texts: Any, steps: Any) -> NDArray[np.float32]:
    for index in range(steps.steps):
        state = backend.step(state, index, noise(index), texts, steps)
    return state


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_those_of_onnx_runtime(bench: Bench, sampler: str, guidance: float) -> None:
    request = Request("alice and bob", seed=3, sampler=sampler, guidance=guidance)
    assert np.array_equal(pixels(bench.bundle, bench.backend(), request), bench.expected(request))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_layouts_likeness_and_overrides_are_those_of_onnx_runtime(bench: Bench, guidance: float) -> None:
    backend, carol = bench.backend(), make_identity("carol", 3)
    plain = Request("alice and bob", seed=3, guidance=guidance)
    laid_out, dialled = replace(plain, layout="left:bob,right:alice"), replace(plain, likeness=(("bob", 0.5),))
    for request in (plain, laid_out, dialled, plain):
        assert np.array_equal(pixels(bench.bundle, backend, request), bench.expected(request))
    one, other = (
        np.asarray(generate(bench.bundle, engine, replace(plain, prompt="carol"), overrides=[carol])[0].image)
        for engine in (backend, OrtBackend(bench.bundle, "cpu", 1))
    )
    assert np.array_equal(one, other)
    with pytest.raises(NotFoundError):
        generate(bench.bundle, backend, replace(plain, prompt="<carol>"))


@pytest.mark.parametrize("guides", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_whole_run_equals_its_steps(bench: Bench, sampler: str, guides: int) -> None:
    state, noise, texts, steps = inputs(bench.bundle, sampler, guides=guides)
    backend, ort = bench.backend(), OrtBackend(bench.bundle, "cpu", 1)
    whole = backend.denoise(state, noise, texts, steps)
    assert np.array_equal(whole, stepwise(backend, state, noise, texts, steps))
    assert np.array_equal(whole, stepwise(ort, state, noise, texts, steps))


def test_a_run_is_one_launch_and_a_graph_is_captured_once(bench: Bench) -> None:
    backend, calls = bench.backend(), bench.cudart.calls
    state, noise, texts, steps = inputs(bench.bundle, "euler_a")
    first = backend.denoise(state, noise, texts, steps)
    assert (calls["cudaGraphInstantiate"], calls["cudaGraphLaunch"]) == (1, 1)
    memory = bench.cudart.used
    other = backend.denoise(state + 1, noise, Conditioning(texts.context * 2), steps)
    again = backend.denoise(state, noise, texts, steps)
    assert (calls["cudaGraphInstantiate"], calls["cudaGraphLaunch"]) == (1, 3)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert bench.cudart.used == memory
    backend.denoise(state, noise, texts, step_table("euler_a", bench.bundle.schedule, 4, 2.5))
    assert calls["cudaGraphInstantiate"] == 2


def test_progress_says_when_a_run_is_done(bench: Bench) -> None:
    seen: list[Progress] = []
    state, noise, texts, steps = inputs(bench.bundle, "ddim")
    bench.backend().denoise(state, noise, texts, steps, seen.append)
    assert seen == [Progress("denoising", 5, 5)]


def test_a_new_person_costs_one_copy_of_two_rows(bench: Bench) -> None:
    backend = bench.backend()
    pixels(bench.bundle, backend, Request("alice"))
    table = bench.bundle.manifest.token_tables[0]
    assert bench.cudart.copies.count(table.rows * ROW) == 1
    bench.cudart.copies.clear()
    elsewhere = Bundle.open(bench.bundle.path)
    elsewhere.add(make_identity("carol", 5))
    request = Request("carol and alice")
    assert np.array_equal(pixels(bench.bundle, backend, request), bench.expected(request))
    assert bench.cudart.copies.count(2 * ROW) == 1 and table.rows * ROW not in bench.cudart.copies
    elsewhere.replace(make_identity("alice", 6))
    assert np.array_equal(pixels(bench.bundle, backend, request), bench.expected(request))
    assert bench.trt.loaded == 3  # text encoder, step and decoder, each once


def test_rows_read_while_the_bundle_changes_are_read_again(bench: Bench) -> None:
    """What was copied while the manifest changed is never taken for the real thing, whatever its digest says."""
    backend, elsewhere = bench.backend(), Bundle.open(bench.bundle.path)
    ids = bench.bundle.tokenizer().encode("alice", bench.bundle.token_ids).ids[None]
    expected = OrtBackend(bench.bundle, "cpu", 1).encode(ids)[0]
    table, spare = bench.bundle.file("token_table.bin"), bench.bundle.manifest.token_tables[0]
    good, first = table.read_bytes(), bench.bundle.token_ids["alice"][0]
    start = first * spare.row_bytes
    table.write_bytes(good[:start] + bytes(2 * ROW) + good[start + 2 * ROW :])
    elsewhere.add(make_identity("carol", 5))
    assert not np.array_equal(backend.encode(ids)[0], expected)
    with table.open("rb+") as file:
        file.seek(start)
        file.write(good[start : start + 2 * ROW])
    bench.bundle.refresh()
    assert np.array_equal(backend.encode(ids)[0], expected)


def test_a_batch_is_drawn_in_pieces_that_engines_take(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "2x32x32", "1x32x32")
    backend = bench.backend()
    assert backend.batch_limit == 2
    state, noise, texts, steps = inputs(bench.bundle, "euler_a", pictures=3)
    whole = backend.denoise(state, noise, texts, steps)
    assert bench.cudart.calls["cudaGraphLaunch"] == 2
    expected = stepwise(OrtBackend(bench.bundle, "cpu", 1), state, noise, texts, steps)
    assert np.allclose(whole, expected, atol=1e-6)
    assert np.allclose(stepwise(backend, state, noise, texts, steps), expected, atol=1e-6)
    together = generate(bench.bundle, backend, batch(Request("alice", seed=4), 5))
    for picture in together:
        assert np.array_equal(np.asarray(picture.image), bench.expected(picture.request))


def test_the_engine_made_for_a_size_is_preferred_to_the_one_for_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "1x32x32", dynamic=True)
    backend = bench.backend()
    assert backend.batch_limit == 1
    for width, files in ((32, {"step-b1-32x32.plan"}), (40, {"step-b1-32x32.plan", "step-dynamic.plan"})):
        request = Request("bob", width=width)
        assert np.array_equal(pixels(bench.bundle, backend, request), bench.expected(request))
        there = {record.key: record.file for record in vars(backend)["_records"]}
        assert {there[key] for key in vars(backend)["_engines"] if there[key].startswith("step-")} == files


def test_inputs_that_fit_no_engine_are_an_error_or_use_the_fallback(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request("alice", width=64, height=48)
    with pytest.raises(SetupError) as caught:
        generate(bench.bundle, bench.backend(), request)
    assert caught.value.reason == "no_engine_fits" and caught.value.values["size"] == "1x48x64"
    backend = bench.backend(falls_back=True)
    picture = generate(bench.bundle, backend, request)[0]
    assert np.array_equal(np.asarray(picture.image), bench.expected(request))
    generate(bench.bundle, backend, request)
    assert len(caplog.messages) == 1 and "64x48" in caplog.messages[0]
    assert picture.record["backend"]["elsewhere"].endswith("step, vae_decoder")
    assert "elsewhere" not in generate(bench.bundle, backend, Request("alice"))[0].record["backend"]


def test_a_whole_run_falls_back_too(bench: Bench) -> None:
    state, noise, texts, steps = inputs(bench.bundle, "euler_a")
    wide = np.concatenate([state, state], axis=-1)

    def wide_noise(index: int) -> NDArray[np.float32]:
        return np.concatenate([noise(index), noise(index)], axis=-1)

    seen: list[Progress] = []
    backend = bench.backend(falls_back=True)
    whole = backend.denoise(wide, wide_noise, texts, steps, seen.append)
    expected = stepwise(OrtBackend(bench.bundle, "cpu", 1), wide, wide_noise, texts, steps)
    assert np.array_equal(whole, expected) and [progress.step for progress in seen] == [1, 2, 3, 4, 5]


def test_the_record_names_engine_version_and_gpu(bench: Bench) -> None:
    facts = bench.backend().describe()
    assert facts == {"engine": "tensorrt", "version": "11.4.0.106", "device": bench.device.cuda.gpu().name}


def test_engines_of_another_gpu_or_version_are_named(bench: Bench) -> None:
    others: list[dict[str, Any]] = [{"name": "NVIDIA Other"}, {"version": "10.16.1.11"}]
    for options in others:
        *_, device = fake_device(**options)
        with pytest.raises(NotFoundError, match=re.escape(str(bench.device.machine))) as caught:
            bench.backend(device=device)
        assert caught.value.reason == "no_engines" and caught.value.values["machine"] == device.machine


def test_engines_of_a_bundle_are_never_loaded(bench: Bench) -> None:
    """A bundle may come from anywhere, and loading a plan can run code in it."""
    bench.engines.rename(bench.bundle.path / "engines")
    with pytest.raises(NotFoundError):
        bench.backend()
    assert bench.trt.loaded == 0


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"file": "x", "profiles": [], "parity": []}'])
def test_a_damaged_record_counts_as_none(bench: Bench, content: str) -> None:
    for record in bench.engines.glob("*/engine.json"):
        record.write_text(content)
    with pytest.raises(NotFoundError):
        bench.backend()
    bench.build("1x32x32")
    assert np.array_equal(pixels(bench.bundle, bench.backend(), Request("alice")), bench.expected(Request("alice")))


def test_a_full_device_is_an_error(bench: Bench) -> None:
    bench.cudart.room = bench.cudart.used + 100
    with pytest.raises(SetupError) as caught:
        generate(bench.bundle, bench.backend(), Request("alice"))
    assert caught.value.reason == "out_of_gpu_memory"
    assert re.search(r"0\.0 GB more are needed, 0\.0 of 0\.0 GB are free", caught.value.problem)
    bench.cudart.room = 1 << 30
    assert np.array_equal(pixels(bench.bundle, bench.backend(), Request("alice")), bench.expected(Request("alice")))


def test_tensorrts_last_error_is_in_the_message(bench: Bench) -> None:
    bench.device.library.errors.append("left over from before")
    content = b'{"version": "9.0"}'
    with pytest.raises(SetupError, match=r"old\.plan: the plan was made by another version") as caught:
        bench.device.library.deserialize(content, "old.plan")
    assert caught.value.reason == "tensorrt_failed"
    bench.device.library.errors[:] = ["CUDA error: Out of memory at line 7"]
    assert bench.device.library.error("TensorRT failed").reason == "out_of_gpu_memory"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (CudaError.cudaErrorInsufficientDriver, "driver_too_old"),
        (CudaError.cudaErrorSystemDriverMismatch, "driver_too_old"),
        (CudaError.cudaErrorNoDevice, "cuda_failed"),
        (CudaError.cudaErrorLaunchFailure, "cuda_failed"),
    ],
)
def test_every_error_status_of_cuda_has_a_reason(
    status: CudaError, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart = FakeCudart()
    cudart.status = status
    monkeypatch.setattr(nvidia_driver, "driver_cuda_version", Mock(return_value=12080))
    with pytest.raises(SetupError) as caught:
        Cuda(cudart).gpu()
    assert caught.value.reason == reason and caught.value.hint


class Cycle:
    """Garbage that only the collector frees, with a buffer of the device in it."""

    def __init__(self, cuda: Cuda) -> None:
        self.buffer, self.itself = DeviceBuffer(cuda, 16), self


@pytest.mark.parametrize("collects", [True, False], ids=["by itself", "when asked to"])
def test_no_garbage_is_collected_while_a_graph_is_captured(bench: Bench, collects: bool) -> None:
    cuda, made = bench.device.cuda, bench.cudart.calls
    stream = Stream(cuda)

    def enqueue() -> None:
        gc.set_threshold(10)
        kept = [list[int]() for _ in range(2000)]  # the collector runs many times, unless it is switched off
        if not collects:
            gc.collect()
        del kept

    gc.collect()  # so that nothing is collected before the capture
    Cycle(cuda)
    try:
        if collects:
            stream.capture(enqueue)
            assert made["cudaGraphInstantiate"] == 1 and gc.isenabled()
        else:  # what happens otherwise
            with pytest.raises(SetupError, match="StreamCaptureInvalidated"):
                stream.capture(enqueue)
    finally:
        gc.set_threshold(700, 10, 10)
    assert bench.cudart.captured is None


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaFree", "cudaStreamSynchronize"])
def test_a_capture_refuses_what_would_wait_for_the_device(bench: Bench, call: str) -> None:
    stream, buffer = Stream(bench.device.cuda), DeviceBuffer(bench.device.cuda, 16)
    argument = {"cudaMalloc": 16, "cudaFree": buffer.address, "cudaStreamSynchronize": 7}[call]
    with pytest.raises(SetupError, match="StreamCapture"):
        stream.capture(lambda: getattr(bench.cudart, call)(argument))


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_a_long_run_is_several_graphs(bench: Bench, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 steps as graphs of 2, 2 and 1: two graphs are captured, and three launches give the same picture."""
    state, noise, texts, steps = inputs(bench.bundle, sampler)
    whole = bench.backend().denoise(state, noise, texts, steps)
    before = bench.cudart.calls["cudaGraphLaunch"]
    monkeypatch.setattr(tensorrt_runner, "MAX_CAPTURED_STEPS", 2)
    backend, calls = bench.backend(), bench.cudart.calls
    captured = calls["cudaGraphInstantiate"]
    for _ in range(2):
        assert np.array_equal(backend.denoise(state, noise, texts, steps), whole)
    assert calls["cudaGraphInstantiate"] - captured == 2 and calls["cudaGraphLaunch"] - before == 6


def test_a_context_gets_memory_for_its_shapes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dynamic engine's largest shapes need not fit where a small picture does."""
    bench = Bench(tmp_path, "1x16x16", dynamic=True)
    latent = np.zeros((1, 4, 4, 4), np.float32)
    (record,) = (one for one in find_records(bench.engines, bench.bundle.manifest, bench.device.machine)
                 if one.file == "vae_decoder-dynamic.plan")  # fmt: skip
    plan = (bench.engines / record.key / record.file).read_bytes()
    engine = bench.device.library.deserialize(plan, record.file)
    session = Session(bench.device, Stream(bench.device.cuda), engine, 0, {"latent": latent.shape})
    small = bench.cudart.used
    monkeypatch.setattr(bench.trt.ExecutionContextAllocationStrategy, "USER_MANAGED", 0)
    other = Session(bench.device, Stream(bench.device.cuda), engine, 0, {"latent": latent.shape})
    assert np.array_equal(session.run({"latent": latent})["image"], other.run({"latent": latent})["image"])
    assert bench.cudart.used - small > 4 * 4 * 10 * 10, "the default allocates for the largest shapes"


def test_the_second_gpu_is_used_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines belong to the model of that GPU; CUDA's current device is a thread's own."""
    bench = Bench(tmp_path, "1x32x32")
    cudart = FakeCudart(1 << 30, (9, 0), "NVIDIA Other 9", GPU)
    trt = FakeTrt(cudart)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    backend = choose_backend(bench.bundle, "trt:1", engines=bench.engines, threads=1)
    assert isinstance(backend, TensorRtBackend) and backend.describe()["device"] == GPU
    with ThreadPoolExecutor(1) as threads:
        drawn = threads.submit(pixels, bench.bundle, backend, Request("alice")).result()
    assert np.array_equal(drawn, bench.expected(Request("alice"))) and cudart.devices_used == {1}
    with pytest.raises(NotFoundError, match="Other 9"):
        choose_backend(bench.bundle, "trt", engines=bench.engines, threads=1)
    with pytest.raises(SetupError) as caught:
        choose_backend(bench.bundle, "trt:2", engines=bench.engines, threads=1)
    assert (caught.value.reason, caught.value.values["gpus"]) == ("no_such_gpu", 2)


def test_a_gpu_too_old_for_tensorrt_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = FakeCudart(1 << 30, (6, 1), "NVIDIA GeForce GTX 1080")
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTrt(cudart))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    with pytest.raises(SetupError, match=r"GTX 1080 is too old.* 6\.1.* 7\.5") as caught:
        Device.load()
    assert caught.value.reason == "gpu_too_old"


@pytest.mark.parametrize(
    ("supported", "required", "reason", "words"),
    [
        (None, 13000, "driver_missing", "no NVIDIA driver"),
        (12080, 13000, "driver_too_old", "supports CUDA 12.8, and CUDA 13.0 needs driver 580 or newer"),
        (11080, 12080, "driver_too_old", "supports CUDA 11.8, and CUDA 12.8 needs driver 525 or newer"),
        (12080, 0, "driver_too_old", "needs a newer driver"),
    ],
)
def test_a_driver_that_is_too_old_is_reported_with_both_numbers(
    supported: int | None, required: int, reason: str, words: str
) -> None:
    def load(name: str) -> Any:
        if supported is None:
            raise OSError(name)

        def version(place: Any) -> int:
            ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = supported
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    error = nvidia_driver.driver_error(required, load)
    assert error.reason == reason and words in error.problem


def test_a_capture_that_fails_leaves_the_stream_usable(bench: Bench) -> None:
    stream = Stream(bench.device.cuda)
    with pytest.raises(SetupError):
        stream.capture(lambda: DeviceBuffer(bench.device.cuda, 16) and None)
    assert bench.cudart.captured is None
    array, buffer = np.arange(4.0), DeviceBuffer(bench.device.cuda, 32)
    stream.upload(array, buffer.address)
    assert np.array_equal(stream.download(buffer.address, (4,), array.dtype), array)


def test_device_memory_goes_back_with_the_backend(bench: Bench) -> None:
    gc.collect()
    before = bench.cudart.used
    backend = bench.backend()
    generate(bench.bundle, backend, Request("alice"))
    assert bench.cudart.used > before
    del backend
    gc.collect()
    assert bench.cudart.used == before


def test_least_recently_used_sessions_are_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "1x32x32", dynamic=True)
    backend = bench.backend()
    for width in (32, 40, 16, 24):
        for height in (32, 40):
            backend.decode(np.zeros((1, 4, height // 4, width // 4), np.float32))
    assert len(vars(backend)["_sessions"]) == 6


def test_a_bundle_exported_again_needs_new_engines(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, strict = bench.backend(falls_back=True), bench.backend()
    other = write_bundle(tmp_path / "other", seed=99)
    for graph in other.manifest.graphs.values():
        file = other.file(graph.file)
        file.write_bytes(file.read_bytes() + b"\x22\x01x")  # the same model in other words: another domain name
    Bundle.seal(other.path, other.manifest)
    bench.bundle.path.rename(tmp_path / "away")
    other.path.rename(bench.bundle.path)
    with pytest.raises(NotFoundError):
        generate(bench.bundle, strict, Request("an an"))
    assert np.array_equal(pixels(bench.bundle, backend, Request("an an")), bench.expected(Request("an an")))
    assert len(caplog.messages) >= 1 and all("ONNX Runtime" in message for message in caplog.messages)


def test_auto_falls_back_with_one_warning_and_trt_raises(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("tensorrt", "cuda", "cuda.bindings.runtime"):  # a CUDA build of torch has the third
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(choose_backend(bench.bundle, "auto", engines=tmp_path / "empty", threads=1), OrtBackend)
    assert caplog.messages == [], "no warning for a bundle without engines"
    assert isinstance(choose_backend(bench.bundle, "auto", engines=bench.engines, threads=1), OrtBackend)
    assert isinstance(choose_backend(bench.bundle, "cpu", engines=bench.engines, threads=1), OrtBackend)
    assert len(caplog.messages) == 1 and "TensorRT is not installed" in caplog.messages[0]
    with pytest.raises(SetupError) as caught:
        choose_backend(bench.bundle, "trt", engines=bench.engines, threads=1)
    assert caught.value.reason == "tensorrt_unavailable"
    with pytest.raises(SetupError, match="cuda-python"):
        Cuda.load()


def test_auto_uses_onnx_runtime_when_engines_are_of_another_gpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    *_, device = fake_device(name="NVIDIA Elsewhere 2000")
    monkeypatch.setattr(Device, "load", Mock(return_value=device))
    request = Request("alice", seed=3)
    backend = choose_backend(bench.bundle, "auto", engines=bench.engines, threads=1)
    assert np.array_equal(pixels(bench.bundle, backend, request), bench.expected(request))
    (message,) = caplog.messages
    assert str(device.machine) in message
    with pytest.raises(NotFoundError):
        choose_backend(bench.bundle, "trt", engines=bench.engines, threads=1)


@pytest.mark.parametrize("version", ["10.15.1.29", "12.0.0.1"])
def test_other_versions_of_tensorrt_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrt(FakeCudart(), version)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with pytest.raises(SetupError, match=version):
        TensorRt.load()


def test_the_exported_model_draws_the_same(exported_copy: Path, tmp_path: Path) -> None:
    """Not a toy's graphs but those that export writes: external weights, one file for both kinds of guidance."""
    bundle = Bundle.open(exported_copy)
    _, cudart, device = fake_device()
    height, width = bundle.manifest.size.native
    plans = plan_engines(bundle.manifest, [EngineSize(1, height, width)], dynamic=False)
    assert [len(entry.profiles) for entry in plans] == [1, 2, 1, 1]
    build_plans(bundle, plans, tmp_path, device=device)
    assert Bundle.open(exported_copy, verify="full").names == ("ann",)
    backend, ort = TensorRtBackend(bundle, tmp_path, device=device), OrtBackend(bundle, "cpu", 1)
    for guidance in (1.0, 2.5):
        request = Request("a portrait of ann", seed=1, steps=3, sampler="euler_a", guidance=guidance)
        ours, theirs = (generate(bundle, engine, request)[0] for engine in (backend, ort))
        assert np.abs(np.asarray(ours.image, np.int16) - np.asarray(theirs.image, np.int16)).max() <= 1
    assert cudart.copies


def test_a_half_precision_table_is_copied_as_it_is(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "half", dtype="float16")
    bundle.add(make_identity("alice"))
    *_, device = fake_device()
    build_plans(bundle, plan_engines(bundle.manifest, dynamic=False), tmp_path, device=device)
    backend = TensorRtBackend(bundle, tmp_path, device=device)
    request = replace(Request("alice"), seed=2)
    assert np.array_equal(pixels(bundle, backend, request), pixels(bundle, OrtBackend(bundle, "cpu", 1), request))
