"""ONNX Runtime on CUDA, as far as that can be held without a GPU: buffers, turns, capture, and what failures say.

The steps' loop runs on real ONNX Runtime with buffers on the CPU; CUDA's part runs on a stand-in that fulfils the same
interface and keeps what it was asked.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray

from celebctl.bench.contenders import CUDA_VARIANTS, Workload, device_variants
from celebctl.bench.worker import create_worker
from celebctl_runtime.backends import ort
from celebctl_runtime.backends.base import Conditioning, parse_options
from celebctl_runtime.backends.device import DeviceSpec
from celebctl_runtime.backends.ort import IoBindingLoop, OrtBackend
from celebctl_runtime.backends.ort_session import (
    CPU,
    CUDA,
    CudaFailure,
    diagnose_cuda,
    load_onnxruntime,
    spin_options,
    translate_ort_errors,
)
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import CelebctlError, IntegrityError, SetupError, UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.samplers import step_table


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle", spare_rows=16)
    bundle.add(make_identity("alice", 1))
    return bundle


state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # with its own types of errors


class FakeCuda:
    """onnxruntime as a machine with CUDA has it: sessions compute on the CPU, and everything asked of CUDA is kept."""

    def __init__(self, *, refuses_capture: bool = False, capture_fails: bool = False, version: str = "1.31.1") -> None:
        import onnxruntime

        self.real: Any = onnxruntime
        self.refuses_capture, self.capture_fails, self.__version__ = refuses_capture, capture_fails, version
        self.options: list[tuple[str, dict[str, str]]] = []
        self.runs: list[tuple[str, str]] = []  # graph file, gpu_graph_id
        self.devices: list[str] = []
        self.preloaded = 0
        fake = self

        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(array: NDArray[Any], device: str, number: int) -> Any:
                fake.devices.append(f"{device}:{number}")
                return fake.real.OrtValue.ortvalue_from_numpy(array, "cpu", 0)

        class Session:
            def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int) -> None:
                assert not enable_fallback
                chosen: dict[str, str] = next((entry[1] for entry in providers if entry[0] == CUDA), dict[str, str]())
                fake.options.append((Path(path).name, chosen))
                if "warp_speed" in chosen:
                    raise RuntimeError('[ONNXRuntimeError] : Unknown provider option: "warp_speed".')
                if fake.refuses_capture and chosen.get("enable_cuda_graph"):
                    raise state.Fail("This session cannot use the graph capture feature as requested by the user")
                self._real, self._name = fake.real.InferenceSession(path, options, providers=[CPU]), Path(path).name

            def get_providers(self) -> list[str]:
                return [CUDA, CPU]

            def io_binding(self) -> Any:
                return self._real.io_binding()

            def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
                if fake.capture_fails and options is not None and len(fake.runs) > 3:
                    raise state.Fail("CUDA failure 900: operation not permitted when stream is capturing ; GPU=0")
                fake.runs.append((self._name, "" if options is None else options.get_run_config_entry("gpu_graph_id")))
                self._real.run_with_iobinding(binding)

            def run(self, names: None, feeds: Any, options: Any = None) -> Any:
                fake.runs.append((self._name, "" if options is None else options.get_run_config_entry("gpu_graph_id")))
                return self._real.run(names, feeds)

        self.OrtValue, self.InferenceSession = OrtValue, Session

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self) -> None:
        self.preloaded += 1


def on_cuda(
    bundle: Bundle, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, device: str = "cuda", **more: Any
) -> OrtBackend:
    monkeypatch.setattr(ort, "load_onnxruntime", lambda: fake)
    return OrtBackend(bundle, device, **more)


def texts_of(backend: OrtBackend, bundle: Bundle) -> Conditioning:
    ids = np.stack([bundle.tokenizer().encode(text, bundle.token_ids).ids for text in ("", "alice")])
    return Conditioning(backend.encode(ids)[0][:, None])


@pytest.mark.parametrize(
    ("version", "spins"), [("1.24.0", "0"), ("1.31.1", "0"), ("1.32.0", "1"), ("2.0", "1"), ("", "0")]
)
def test_threads_wait_actively_only_where_that_can_be_limited(version: str, spins: str) -> None:
    chosen = spin_options(version)
    assert chosen["session.intra_op.allow_spinning"] == spins
    assert ("session.intra_op.spin_duration_us" in chosen) == (spins == "1")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_bound_loop_is_the_plain_loop(bundle: Bundle, sampler: str, steps: int) -> None:
    """Bit for bit: states that take turns in two buffers, and noise of its own for every step."""
    backend, random = OrtBackend(bundle, "cpu", 1), np.random.default_rng(0)
    texts, chosen = texts_of(backend, bundle), step_table(sampler, bundle.schedule, steps, 2.5)
    start = random.standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    noises = random.standard_normal((steps, 1, 4, 8, 8), dtype=np.float32)
    state, seen = start, list[int]()
    for index in range(steps):
        state = backend.step(state, index, noises[index], texts, chosen)
    for _ in range(2):  # the second run finds the buffers of the first
        whole = backend.denoise(start, lambda k: noises[k], texts, chosen, lambda progress: seen.append(progress.step))
        assert np.array_equal(whole, state)
    assert seen == [*range(1, steps + 1)] * 2


def test_a_result_is_not_touched_by_later_runs(bundle: Bundle) -> None:
    backend = OrtBackend(bundle, "cpu", 1)
    texts, chosen = texts_of(backend, bundle), step_table("ddim", bundle.schedule, 4, 2.5)
    zeros, ones = (np.full((2, 1, 4, 8, 8), value, np.float32) for value in (0, 1))

    def run(start: NDArray[np.float32]) -> NDArray[np.float32]:
        return backend.denoise(start, lambda _: start[0], texts, chosen)

    first = run(zeros)
    kept = first.copy()
    assert not np.array_equal(run(ones), kept) and np.array_equal(first, kept) and not zeros.any() and ones.all()


def test_prompts_are_encoded_once_until_people_change(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, runs = OrtBackend(bundle, "cpu", 1), list[str]()
    plain = OrtBackend._run_raw  # pyright: ignore[reportPrivateUsage]

    def counted(self: OrtBackend, graph: str, feeds: Any) -> Any:
        runs.append(graph)
        return plain(self, graph, feeds)

    monkeypatch.setattr(OrtBackend, "_run_raw", counted)
    for seed in range(3):
        generate(bundle, backend, Request("alice", seed=seed))
    assert runs.count("text_encoder") == 1
    Bundle.open(bundle.path).replace(make_identity("alice", 9))
    generate(bundle, backend, Request("alice"))
    assert runs.count("text_encoder") == 2


def test_an_encoding_is_not_taken_for_that_of_other_rows(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likeness and overrides in any order give the same images as alone, and each is encoded once."""
    backend, runs = OrtBackend(bundle, "cpu", 1), list[str]()
    plain = OrtBackend._run_raw  # pyright: ignore[reportPrivateUsage]

    def counted(self: OrtBackend, graph: str, feeds: Any) -> Any:
        runs.append(graph)
        return plain(self, graph, feeds)

    double = make_identity("alice", 9)
    wanted = [(1.0, ()), (0.5, ()), (1.0, (double,)), (0.0, (double,))]
    alone = [
        generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice", likeness=dial), overrides=overrides)[0].image
        for dial, overrides in wanted
    ]
    monkeypatch.setattr(OrtBackend, "_run_raw", counted)
    for k in (0, 1, 2, 3, 1, 0, 3, 2, 0):
        (picture,) = generate(bundle, backend, Request("alice", likeness=wanted[k][0]), overrides=wanted[k][1])
        assert np.array_equal(np.asarray(picture.image), np.asarray(alone[k]))
    assert runs.count("text_encoder") == 4


def test_steps_on_cuda_are_captured_once_for_each_turn(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    backend = on_cuda(bundle, fake, monkeypatch)
    (cuda,) = generate(bundle, backend, Request("alice", seed=3, steps=5))
    assert fake.preloaded == 1 and cuda.record["backend"]["device"] == "cuda"
    assert cuda.record["backend"]["cuda_graph"] == "yes"
    steps = [number for name, number in fake.runs if name == "step.onnx"]
    assert steps == [steps[0], steps[1], steps[0], steps[1], steps[0]] and steps[0] != steps[1]
    options = dict(fake.options)
    assert options["step.onnx"]["enable_cuda_graph"] == "1"
    assert {(each["prefer_nhwc"], each["use_tf32"]) for each in options.values()} == {("0", "0")}
    assert {each["cudnn_conv_algo_search"] for each in options.values()} == {"HEURISTIC"}
    assert "enable_cuda_graph" not in options["vae_decoder.onnx"] and set(fake.devices) == {"cuda:0"}
    before = len(fake.devices)
    generate(bundle, backend, Request("alice", seed=4, steps=3))
    assert len(fake.devices) == before, "another number of steps needs no new buffers, and no new capture"
    generate(bundle, backend, Request("alice", width=48))
    assert len(fake.devices) > before and {n for g, n in fake.runs if g == "step.onnx"} > set(steps)


def test_another_gpu_holds_sessions_and_buffers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    (image,) = generate(bundle, on_cuda(bundle, fake, monkeypatch, "cuda:1"), Request("alice", steps=2))
    assert {chosen["device_id"] for _, chosen in fake.options} == {"1"} and set(fake.devices) == {"cuda:1"}
    assert image.record["backend"]["device"] == "cuda:1"


def broken_cuda(monkeypatch: pytest.MonkeyPatch, complaint: Exception, only: str = "") -> None:
    """The genuine ONNX Runtime, as it is where CUDA is offered and fails for graph files whose name begins so."""
    import onnxruntime

    engine: Any = onnxruntime
    plain = engine.InferenceSession._create_inference_session

    def create(self: Any, providers: list[Any], options: Any, *more: Any) -> None:
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        if CUDA in names and Path(self._model_path).name.startswith(only):
            self._fallback_providers = [CPU]  # as the genuine one has it by then
            raise complaint
        plain(self, [CPU], options, *more)
        self._providers = names

    monkeypatch.setattr(engine, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(engine, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(engine.InferenceSession, "_create_inference_session", create)


@pytest.mark.parametrize("only", ["", "step"])
def test_the_wrapper_of_onnx_runtime_does_not_fall_back_by_itself(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    only: str,
) -> None:
    """A CUDA failure is an error for "cuda", one warning and the CPU for "auto", and never printed on stdout.

    With `only`, CUDA's first sessions open and a later one does not.
    """
    broken_cuda(monkeypatch, RuntimeError("CUDA failure 999: unknown error ; GPU=0"), only)
    if only:
        monkeypatch.setattr(ort, "IoBindingLoop", on_the_cpu(IoBindingLoop))
    with pytest.raises(CudaFailure) as caught:
        generate(bundle, OrtBackend(bundle, "cuda"), Request("alice"))
    assert caught.value.reason and caught.value.exit_code == 6
    backend = OrtBackend(bundle, "auto")
    (picture,) = generate(bundle, backend, Request("alice"))
    assert backend.describe()["device"] == "cpu" and len(caplog.messages) == 1 and "CPU" in caplog.messages[0]
    (plain,) = generate(bundle, OrtBackend(bundle, "cpu"), Request("alice"))
    assert np.array_equal(np.asarray(picture.image), np.asarray(plain.image))
    assert not capfd.readouterr().out


def on_the_cpu(plain: Any) -> Any:
    def bound(ort: Any, session: Any, device: DeviceSpec, *more: Any) -> Any:
        assert device.kind == "cpu", "a session on CUDA was kept"
        return plain(ort, session, device, *more)

    return bound


@pytest.mark.parametrize(
    "complaint",
    [
        'Unknown provider option: "warp_speed".',
        'Failed to parse provider option "prefer_nhwc": Failed to parse value: "yes"',
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_wrong_option_of_cuda_is_not_blamed_on_the_machine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], complaint: str, device: str
) -> None:
    broken_cuda(monkeypatch, RuntimeError(complaint))
    with pytest.raises(UsageError, match=r"warp_speed|prefer_nhwc"):
        generate(bundle, OrtBackend(bundle, device), Request("alice"))
    assert not capfd.readouterr().out


def test_a_run_that_fails_on_cuda_is_not_repeated_elsewhere(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The genuine wrapper would print, make a session on the CPU, and run that."""
    broken_cuda(monkeypatch, RuntimeError("unused"), only="no such file")

    class Failing:
        def __init__(self, session: Any) -> None:
            self._session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def run(self, *_: Any) -> None:
            raise state.EPFail("the device is gone")

    genuine = load_onnxruntime().InferenceSession
    plain = genuine._bind_session

    def bind(self: Any, session: Any) -> None:
        plain(self, Failing(session))

    monkeypatch.setattr(genuine, "_bind_session", bind)
    with pytest.raises(SetupError, match="the device is gone") as caught:
        generate(bundle, OrtBackend(bundle, "auto"), Request("alice"))
    assert caught.value.reason == "cuda_run_failed" and not capfd.readouterr().out


def test_a_graph_that_cannot_be_captured_runs_without(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeCuda(refuses_capture=True)
    backend = on_cuda(bundle, fake, monkeypatch)
    (picture,) = generate(bundle, backend, Request("alice"))
    assert picture.record["backend"]["cuda_graph"].startswith("no: This session cannot use the graph capture")
    assert len(caplog.messages) == 1 and "graph capture" in caplog.messages[0]
    assert [chosen.get("enable_cuda_graph") for name, chosen in fake.options if name == "step.onnx"] == ["1", None]
    assert {number for name, number in fake.runs if name == "step.onnx"} == {""}


def test_a_capture_that_fails_is_drawn_without_and_noted_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeCuda(capture_fails=True)
    backend = on_cuda(bundle, fake, monkeypatch)
    requests = [Request("alice", steps=6), Request("alice", steps=6, width=48)]
    images = generate(bundle, backend, requests)
    assert len(caplog.messages) == 1 and "900" in caplog.messages[0]
    assert backend.describe()["cuda_graph"].startswith("no: CUDA failed")
    assert [chosen.get("enable_cuda_graph") for name, chosen in fake.options if name == "step.onnx"] == ["1", None]
    plain = generate(bundle, OrtBackend(bundle, "cpu"), requests)
    for image, other in zip(images, plain, strict=True):
        assert np.array_equal(np.asarray(image.image), np.asarray(other.image)), "the loop begins anew"


def test_a_failure_without_capture_is_not_tried_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    backend, failures = on_cuda(bundle, fake, monkeypatch), list[None]()

    def fail(*_: object) -> None:
        failures.append(None)
        raise state.Fail("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    monkeypatch.setattr(fake.InferenceSession, "run_with_iobinding", fail)
    with pytest.raises(CudaFailure) as caught:
        generate(bundle, backend, Request("alice"))
    assert caught.value.reason == "cuda_run_failed" and len(failures) == 2, "with capture, and once without"


@pytest.mark.parametrize(("version", "captures"), [("1.28.0", False), ("1.29.1", False), ("1.30.0", True)])
def test_steps_are_captured_where_replays_are_right(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, version: str, captures: bool
) -> None:
    fake = FakeCuda(version=version)
    backend = on_cuda(bundle, fake, monkeypatch)
    generate(bundle, backend, Request("alice"))
    assert ("enable_cuda_graph" in dict(fake.options)["step.onnx"]) is captures
    assert backend.describe()["cuda_graph"] == ("yes" if captures else "no: needs ONNX Runtime 1.30")


def test_large_images_are_decoded_one_by_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    requests = [Request("alice", seed=seed) for seed in range(3)]
    together = generate(bundle, on_cuda(bundle, fake, monkeypatch), requests)
    assert [name for name, _ in fake.runs].count("vae_decoder.onnx") == 3 and fake.runs[0][0] == "text_encoder.onnx"
    alone = [generate(bundle, OrtBackend(bundle, "cpu", 1), request)[0] for request in requests]
    for image, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(image.image).astype(int) - np.asarray(other.image)).max() <= 1


def test_options_of_cuda_can_be_given(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    generate(bundle, on_cuda(bundle, fake, monkeypatch, cuda_options={"prefer_nhwc": "1"}), Request("alice"))
    assert {chosen["prefer_nhwc"] for _, chosen in fake.options} == {"1"}


def test_a_single_step_is_not_captured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs lie elsewhere every time, which a captured graph would not notice."""
    fake = FakeCuda()
    backend = on_cuda(bundle, fake, monkeypatch)
    state = np.zeros((2, 1, 4, 8, 8), np.float32)
    backend.step(state, 0, state[0], texts_of(backend, bundle), step_table("ddim", bundle.schedule, 3, 2.5))
    assert fake.runs[-1] == ("step.onnx", "-1")


class Libraries:
    """A machine's shared libraries: the driver's CUDA (None for no driver) and those that are missing."""

    def __init__(self, driver: int | None, missing: str = "") -> None:
        self.driver, self.missing = driver, missing

    def __call__(self, name: str) -> object:
        if name == "libcuda.so.1" and self.driver is not None:
            return SimpleNamespace(cuDriverGetVersion=self._version)
        if name == "nvcuda.dll" or name.startswith("libcuda.") or (self.missing and self.missing in name):
            raise OSError(name)
        return object()

    def _version(self, place: Any) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = (self.driver or 0) * 1000
        return 0


@pytest.mark.parametrize(
    ("libraries", "reason", "value"),
    [
        (Libraries(None), "driver_missing", ""),
        (Libraries(12), "driver_too_old", "CUDA 12"),
        (Libraries(13, "cublas"), "cuda_libraries_missing", "libcublasLt.so.13"),
        (Libraries(13, "libcublas.so"), "cuda_libraries_missing", "libcublas.so.13"),
        (Libraries(13, "cudnn"), "cuda_failed", ""),  # opened later, and by the first convolution
        (Libraries(13, "cufft"), "cuda_failed", ""),  # opened by operators that no graph has
        (Libraries(13), "cuda_failed", ""),
    ],
)
def test_the_reason_why_cuda_is_not_used(libraries: Libraries, reason: str, value: str) -> None:
    failure = diagnose_cuda(SimpleNamespace(cuda_version="13.0"), libraries)
    assert failure.reason == reason and value in failure.problem and failure.hint


def test_a_build_for_another_cuda_asks_for_its_own_libraries() -> None:
    failure = diagnose_cuda(SimpleNamespace(cuda_version="12.8"), Libraries(12, "cublas"))
    assert "libcublasLt.so.12" in failure.problem and failure.values["cublas"] == "nvidia-cublas-cu12"


def test_windows_has_its_own_names_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    failure = diagnose_cuda(SimpleNamespace(cuda_version="13.0"), Libraries(13, "cublas64"))
    assert failure.reason == "cuda_libraries_missing" and "cublas64_13.dll" in failure.problem
    assert ".so" not in failure.problem
    assert diagnose_cuda(SimpleNamespace(cuda_version="13.0"), Libraries(13, ".so")).reason == "cuda_failed"


def test_a_missing_cudnn_has_a_reason() -> None:
    complaint = "cuDNN is unavailable or disabled, and no native kernel can run this convolution"
    with pytest.raises(CudaFailure) as caught, translate_ort_errors(True):
        raise RuntimeError(complaint)
    assert caught.value.reason == "cudnn_missing" and caught.value.exit_code == 6
    with pytest.raises(RuntimeError), translate_ort_errors(False):
        raise RuntimeError(complaint)


@pytest.mark.parametrize(
    "complaint",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 123",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_out_of_memory_has_a_reason(complaint: str) -> None:
    for cuda in (True, False):
        with pytest.raises(SetupError) as caught, translate_ort_errors(cuda):
            raise RuntimeError(complaint)
        assert caught.value.reason == ("out_of_gpu_memory" if cuda else "out_of_memory")
    with pytest.raises(RuntimeError, match="else"), translate_ort_errors(True):
        raise RuntimeError("something else")


def test_a_device_that_is_full_ends_with_the_environments_exit_code(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda()
    backend = on_cuda(bundle, fake, monkeypatch)

    def full(*_: object) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(fake.InferenceSession, "run_with_iobinding", full)
    with pytest.raises(CelebctlError) as caught:
        generate(bundle, backend, Request("alice"))
    assert caught.value.exit_code == 6


def test_graphs_opened_ahead_are_opened_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, plain = list[str](), OrtBackend._open_file  # pyright: ignore[reportPrivateUsage]

    def counted(self: OrtBackend, path: Path, *options: Any) -> Any:
        opened.append(path.name)
        return plain(self, path, *options)

    monkeypatch.setattr(OrtBackend, "_open_file", counted)
    backend = OrtBackend(bundle, "cpu", 1)
    backend.prepare(("step", "vae_decoder"))
    backend.prepare(("step",))
    ahead = generate(bundle, backend, [Request("alice", seed=seed) for seed in (1, 2)])
    assert sorted(opened) == ["step.onnx", "text_encoder.onnx", "vae_decoder.onnx"]
    (plainly,) = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice", seed=1))
    assert np.array_equal(np.asarray(ahead[0].image), np.asarray(plainly.image))


def test_a_graph_that_cannot_be_opened_is_an_error_when_it_is_needed(bundle: Bundle) -> None:
    path = bundle.file("step.onnx")
    path.write_bytes(bytes(path.stat().st_size))
    backend = OrtBackend(bundle, "cpu", 1)
    backend.prepare(("step", "vae_decoder"))
    with pytest.raises(IntegrityError, match=r"step\.onnx"):
        generate(bundle, backend, Request("alice"))


def test_cuda_graphs_can_be_switched_off(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    backend = on_cuda(bundle, fake, monkeypatch, cuda_options={"enable_cuda_graph": "0"})
    generate(bundle, backend, Request("alice"))
    assert backend.describe()["cuda_graph"] == "no: disabled by cuda_options"
    assert not any("enable_cuda_graph" in chosen for _, chosen in fake.options)
    assert {number for name, number in fake.runs if name == "step.onnx"} == {""}


def test_an_option_that_cuda_does_not_have_is_no_fault_of_the_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="warp_speed") as caught:
        generate(bundle, on_cuda(bundle, FakeCuda(), monkeypatch, cuda_options={"warp_speed": "9"}), Request("alice"))
    assert "cuda_options" in caught.value.hint


def test_options_of_cuda_are_read_from_one_line() -> None:
    assert parse_options("") == {}
    assert parse_options(" prefer_nhwc=0, enable_cuda_graph = 1,") == {
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    assert parse_options("a=1,a=2") == {"a": "2"}, "what comes later counts"
    for wrong in ("prefer_nhwc", "=1", "a=", "a b=1"):
        with pytest.raises(UsageError) as caught:
            parse_options(wrong)
        assert caught.value.exit_code == 2 and caught.value.hint


def test_plain_graphs_draw_the_same(bundle: Bundle) -> None:
    """`plain_graphs` ignores the graphs optimized for ONNX Runtime."""
    (usual,) = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice"))
    broken = replace(bundle.manifest.graphs["step"], file="nowhere.onnx")
    formed = Bundle.open(bundle.path)
    formed._manifest = replace(bundle.manifest, ort_graphs={"step": broken, "reader": broken})  # pyright: ignore[reportPrivateUsage]
    (plain,) = generate(formed, OrtBackend(formed, "cpu", 1, plain_graphs=True), Request("alice"))
    assert np.array_equal(np.asarray(plain.image), np.asarray(usual.image))


def test_the_benchmark_times_each_way_of_cuda_as_it_is_called(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = device_variants(["cpu", "cuda"], "use_tf32=1", variants=True)
    assert [name + suffix for name, suffix, _ in ways] == ["cpu", "cuda", *(f"cuda, {name}" for name in CUDA_VARIANTS)]
    assert [name for name, *_ in device_variants(["trt:1", "cuda:1"], "", variants=True)].count("cuda:1") == 3
    spec: dict[str, Any] = {"kind": "celebctl", "bundle": str(bundle.path), "engines": "none", "threads": 1}
    request = Request("alice", steps=3, guidance=2.5, sampler="ddim", width=32, height=32)
    seen: dict[str, tuple[str, bool]] = {}
    for device, suffix, options in ways[1:]:
        fake = FakeCuda()
        monkeypatch.setattr(ort, "load_onnxruntime", lambda fake=fake: fake)
        given = parse_options(options)
        create_worker({**spec, "device": device, "cuda_options": given, "request": request.to_json()}).generate(1)
        step = dict(fake.options)["step.onnx"]
        assert step["use_tf32"] == "1"
        seen[suffix] = step["prefer_nhwc"], "enable_cuda_graph" in step
    assert seen == {"": ("0", True), ", channels last": ("1", True), ", no CUDA graph": ("0", False)}


def test_the_benchmark_searches_for_algorithms_but_not_its_cold_starts(bundle: Bundle) -> None:
    """A cold start is a command as it is typed; the times of further images are the best that there are."""
    workload = Workload(bundle, Request("alice", width=32, height=32), bundle.path, cuda_options="use_tf32=1")
    (contender,) = workload.celebctl_contenders(["cuda"])
    assert contender.spec["cuda_options"] == {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"}
    assert contender.variables == {"CELEBCTL_CUDA_OPTIONS": "use_tf32=1", "CELEBCTL_OPENVINO_OPTIONS": ""}
