"""doctor: each check reports the state of its part of the machine, and the command that fixes it."""

import json
import os
import re
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from bundle_fakes import make_identity, write_bundle
from filelock import FileLock
from model_fakes import write_cache, write_model

from celebctl import doctor
from celebctl.cli.app import app
from celebctl.cli.console import CliConsole
from celebctl.cli.doctor import doctor as command
from celebctl.doctor import Check, Gpu
from celebctl.library import Library
from celebctl_models.checkpoints.known_models import KNOWN

ROOT = Path(__file__).parent.parent
GPU = Gpu("NVIDIA H100", "580.65.06", "81559 MiB")


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with nothing on it, and no GPU."""
    for name in ("CELEBCTL_MODEL", "CELEBCTL_FACE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that are installed; change it at will."""
    packages: dict[str, str] = {}
    monkeypatch.setattr(doctor, "version_of", packages.get)
    return packages


def only(lines: Any) -> Check:
    (line,) = list(lines)
    return line


# The engine.


def test_the_tiny_model_is_valid() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(doctor.TINY_ONNX)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[0].op_type == "Neg"


def test_the_cpu_provider_computes() -> None:
    line = only(doctor.check_providers())
    assert (line.status, line.detail.split()[0]) == ("ok", "CPU")


class FakeEngine:
    """An ONNX Runtime that offers CUDA; sessions keep the providers of `bound`, or fail on CUDA with `complaint`."""

    def __init__(self, *bound: str, complaint: str = "") -> None:
        self.bound, self.complaint = bound, complaint

    def set_default_logger_severity(self, level: int) -> None: ...

    def preload_dlls(self) -> None:
        print("warnings go to stderr")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, model: bytes, providers: list[str], enable_fallback: int) -> Any:
        assert not enable_fallback, "its wrapper would talk on stdout"
        if self.complaint and "CUDAExecutionProvider" in providers:
            raise RuntimeError(self.complaint)
        kept = [name for name in providers if name in self.bound]

        def run(names: None, feeds: object) -> list[list[float]]:
            return [[-1.0]]

        return SimpleNamespace(get_providers=lambda: kept, run=run)


@pytest.mark.parametrize(
    ("bound", "gpus", "status", "text"),
    [
        (("CUDAExecutionProvider", "CPUExecutionProvider"), [GPU], "ok", "CUDA, CPU"),
        (("CPUExecutionProvider",), [GPU], "fail", "no session can use it"),
        (("CPUExecutionProvider",), [], "ok", "CPU ("),
    ],
)
def test_an_offered_provider_must_bind(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: tuple[str, ...],
    gpus: list[Gpu],
    status: str,
    text: str,
) -> None:
    """ONNX Runtime lists providers it cannot load; only a session tells."""
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeEngine(*bound))
    monkeypatch.setattr(doctor, "find_gpus", lambda: gpus)
    line = only(doctor.check_providers())
    assert line.status == status and text in line.detail
    assert bool(line.fix) == (status == "fail")
    assert not capsys.readouterr().out


def test_the_reason_why_a_provider_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "CUDA failure 35:\n CUDA driver version is insufficient"
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeEngine("CPUExecutionProvider", complaint=message))
    monkeypatch.setattr(doctor, "find_gpus", lambda: [GPU])
    line = only(doctor.check_providers())
    assert line.status == "fail" and line.detail.endswith("CUDA failure 35: CUDA driver version is insufficient")


def test_a_gpu_with_a_cpu_runtime_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: [GPU])
    line = only(doctor.check_providers())
    assert line.status == "warn" and "celebctl[cuda]" in line.fix


@pytest.mark.parametrize(
    ("packages", "status", "text"),
    [
        ({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, "fail", "overwrite"),
        ({"onnxruntime": "1.32.0"}, "ok", "CPU"),
        ({"onnxruntime-gpu": "1.31.1"}, "ok", "onnxruntime-gpu 1.31.1"),
        ({"onnxruntime-gpu": "1.29.0"}, "ok", "without CUDA graphs"),
        ({"onnxruntime-gpu": "1.31.1", "insightface": "2.1"}, "ok", "GPU workstation"),
        ({}, "fail", "not installed"),
    ],
)
def test_the_two_runtimes_and_the_three_environments(
    installed: dict[str, str], packages: dict[str, str], status: str, text: str
) -> None:
    installed.update(packages)
    line = only(doctor.check_runtime())
    assert line.status == status and text in line.detail and bool(line.fix) == (status == "fail")


# The rest of the machine.


def write_nvidia_smi(folder: Path, script: str) -> None:
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, installed: dict[str, str]) -> None:
    assert only(doctor.check_gpu()).status == "skip"
    write_nvidia_smi(tmp_path, "echo 'NVIDIA H100, 580.65.06, 81559 MiB'; echo 'NVIDIA T4, 470.1, 15360 MiB'")
    assert doctor.find_gpus() == [GPU, Gpu("NVIDIA T4", "470.1", "15360 MiB")]
    assert [gpu.cuda for gpu in doctor.find_gpus()] == [13, None]
    installed.update({"onnxruntime-gpu": "1.31.1", "torch": "2.13.0", "insightface": "2.1", "tensorrt-cu13": "11.4"})
    right, old = doctor.check_gpu()
    assert right.status == "ok" and right.detail.endswith("driver 580.65.06 (CUDA 13)")
    assert old.status == "warn" and "CUDA 12 needs 525, CUDA 13 needs 580" in old.detail


@pytest.mark.parametrize(
    ("driver", "packages", "status", "said", "extra"),
    [
        ("580.65", {"onnxruntime": "1.32.0"}, "skip", "in an environment of its own", "celebctl[gpu]"),
        ("550.90", {"onnxruntime": "1.32.0"}, "skip", "in an environment of its own", "celebctl[gpu-cu12]"),
        ("580.65", {"onnxruntime-gpu": "1.31.1", "torch": "2.13.0"}, "skip", "insightface, tensorrt", "celebctl[gpu]"),
        ("550.90", {"onnxruntime-gpu": "1.31.1"}, "warn", "the driver supports CUDA 12", "celebctl[gpu-cu12]"),
        ("550.90", {"onnxruntime-gpu": "1.26.0"}, "skip", "several GB", "celebctl[gpu-cu12]"),
    ],
)
def test_the_next_step_to_a_gpu_is_the_line_for_its_driver(
    monkeypatch: pytest.MonkeyPatch,
    installed: dict[str, str],
    driver: str,
    packages: dict[str, str],
    status: str,
    said: str,
    extra: str,
) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: [Gpu("NVIDIA L4", driver, "23034 MiB")])
    installed.update(packages)
    first, second = doctor.check_gpu()
    assert first.status == "ok" and (second.status, second.name) == (status, "gpu set-up")
    assert said in second.detail and f'pip install "{extra}"' in second.fix and "--no-deps" in second.fix
    complete = {"torch": "2.13.0", "insightface": "2.1", "tensorrt-cu12": "11.4"}
    installed.update({**complete, "onnxruntime-gpu": "1.31.1" if driver > "58" else "1.26.0"})
    assert len(list(doctor.check_gpu())) == 1


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_a_failing_driver_is_reported(tmp_path: Path) -> None:
    write_nvidia_smi(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    line = only(doctor.check_gpu())
    assert line.status == "warn" and "has failed" in line.detail and line.fix


def test_cuda_libraries_are_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: dict[str, str]
) -> None:
    assert not list(doctor.check_cuda()), "nobody needs them"
    installed["onnxruntime-gpu"] = "1.31.1"
    found = {"cublas", "cublasLt", "cudart", "curand"}
    monkeypatch.setattr(doctor, "_has_library", found.__contains__)
    line = only(doctor.check_cuda())
    assert line.status == "warn" and line.detail == "not found: libcudnn" and "cudnn" in line.fix
    monkeypatch.undo()
    (tmp_path / "libcurious.so.13").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    has_library: Any = vars(doctor)["_has_library"]
    assert (has_library("curious"), has_library("curiouser")) == (os.name != "nt", False)


@pytest.mark.parametrize(
    ("version", "status"), [("10.15.1", "warn"), ("10.16.1.11", "ok"), ("11.4.0.106", "ok"), ("12.0", "warn")]
)
def test_tensorrt_versions(installed: dict[str, str], version: str, status: str) -> None:
    assert only(doctor.check_tensorrt(False)).status == "skip"
    installed["tensorrt"] = version
    assert only(doctor.check_tensorrt(False)).status == status


def test_torch_is_not_imported_unasked(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert only(doctor.check_torch(False)).status == "skip"
    installed["torch"] = "2.13.0+cpu"
    assert only(doctor.check_torch(False)).detail == "2.13.0+cpu (CPU build)"


def test_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, packages in doctor.EXTRAS.items():
        assert packages == tuple(re.split(r"[<>=\[ ]", need)[0] for need in extras[name])


def test_extras_are_installed_partly_installed_or_absent(installed: dict[str, str]) -> None:
    installed.update(dict.fromkeys(doctor.EXTRAS["learn"], "1"))
    lines = {line.name: line for line in doctor.check_extras()}
    assert [lines[name].status for name in ("learn", "export", "heif")] == ["ok", "warn", "skip"]
    assert "onnxscript" in lines["export"].detail and lines["export"].fix == 'pip install "celebctl[export]"'


def test_versions_come_from_the_metadata() -> None:
    assert doctor.version_of("numpy") == metadata.version("numpy")
    assert doctor.version_of("no-such-package-at-all") is None


# What celebctl has.


def test_little_free_space_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [50e9, 1e9, 1e8]

    def disk_usage(place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=left.pop(0))

    monkeypatch.setattr(doctor.shutil, "disk_usage", disk_usage)
    for status in ("ok", "warn", "fail"):
        assert next(iter(doctor.check_data())).status == status


def test_a_folder_that_is_not_writable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    line = next(iter(doctor.check_data()))
    assert line.status == "fail" and "CELEBCTL_HOME" in line.fix


def test_complete_and_incomplete_models(tmp_path: Path) -> None:
    assert only(doctor.check_models()).detail == "mini (bundled)"
    row = KNOWN["sd15"]
    folder = write_cache(tmp_path / "hub", row.source, write_model(tmp_path / "m"), row.revision)
    assert only(doctor.check_models()).detail == "mini (bundled), sd15"
    (folder / "vae" / "config.json").unlink()
    assert [line.fix for line in doctor.check_models()] == ["", "celebctl download sd15"]


@pytest.mark.parametrize(
    ("model", "status", "fix"),
    [("mini", "ok", ""), ("sd15", "warn", "celebctl download sd15"), ("gone/for/good", "fail", "celebctl use mini")],
)
def test_the_default_model(monkeypatch: pytest.MonkeyPatch, model: str, status: str, fix: str) -> None:
    monkeypatch.setenv("CELEBCTL_MODEL", model)
    line = only(doctor.check_default_model())
    assert (line.status, line.fix) == (status, fix) and "CELEBCTL_MODEL" in line.detail


def test_face_models_come_with_the_model_or_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.check_face_models()).status == "ok"
    monkeypatch.setenv("CELEBCTL_MODEL", "sd15")
    line = only(doctor.check_face_models())
    assert line.status == "warn" and line.fix.startswith("celebctl download buffalo_l")


def test_identities_are_opened(tmp_path: Path) -> None:
    assert only(doctor.check_people()).detail.startswith("0 learned")
    path = Library().save(make_identity("alice"))
    assert only(doctor.check_people()).detail == "1 learned, for 1 model"
    path.write_bytes(b"damaged")
    broken = next(iter(doctor.check_people()))
    assert broken.status == "fail" and broken.fix.startswith("celebctl rm alice --for-model ")


def test_bundles_are_checked() -> None:
    bundle = write_bundle(Library().bundle_path("toy", "0123456789abcdef"))
    assert only(doctor.check_bundles()).detail == "1 exported"
    next(iter(bundle.path.glob("*.onnx"))).unlink()
    broken = next(iter(doctor.check_bundles()))
    assert broken.status == "fail"
    _, named, *rest = shlex.split(broken.fix)
    commands: Any = typer.main.get_command(app)
    assert commands.commands[named].make_context(named, rest).params["model"] == "MODEL"


def test_interrupted_work_is_reported() -> None:
    root = Library().root
    assert not list(doctor.check_interrupted())
    for path in ("checkpoints/toy-0/alice+bob.checkpoint", "cache/buffalo_l.zip.part", "locks/toy-0.carol.lock"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    learning, fetching = doctor.check_interrupted()
    assert learning.fix == "celebctl learn PHOTO PHOTO --name alice --name bob --resume"
    assert fetching.fix == "celebctl download buffalo_l"
    with FileLock(root / "locks" / "toy-0.carol.lock", is_singleton=False):
        assert "toy-0.carol" in [line.detail for line in doctor.check_interrupted()][1]


def test_the_commands_of_all_fixes_parse() -> None:
    commands: Any = typer.main.get_command(app)
    found = re.findall(r'"(celebctl [^"]+)"', Path(str(doctor.__file__)).read_text(encoding="utf-8"))
    assert len(found) >= 6
    for fix in found:
        _, name, *rest = shlex.split(re.sub(r"\{[^}]*\}", "value", fix))
        commands.commands[name].make_context(name, rest)


# All of it.


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken package, or broken settings, keep the other checks from nothing."""

    def broken() -> list[Check]:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(doctor, "check_people", broken)
    Path("celebctl.toml").write_text("modle = 'mini'")
    lines = doctor.run_checks()
    assert any("libnvinfer" in line.detail for line in lines)
    assert any(line.name == "settings" and "did you mean model" in line.fix for line in lines)
    assert any(line.name == "bundles" for line in lines)


def test_lines_fit_eighty_columns() -> None:
    lines = [
        Check("warn", "default model", "word " * 40, "celebctl download sd15"),
        Check("ok", "gpu", "fine", "hidden"),
    ]
    text = doctor.render(lines)
    assert all(len(row) <= 80 for row in text) and len(text) > 4
    assert text[-2].strip() == "celebctl download sd15" and text[-1] == "ok    gpu            fine"
    assert len({len(row) - len(row.lstrip()) for row in text[1:-2]}) == 1


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("skip", 0), ("fail", 6)])
def test_the_exit_code_and_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Any, code: int
) -> None:
    def run_checks(deep: bool) -> list[Check]:
        return [Check(status, "gpu", "one", "fix it")]

    monkeypatch.setattr(doctor, "run_checks", run_checks)
    app = typer.Typer()
    app.command()(command)
    assert (app([], standalone_mode=False, obj=CliConsole()) or 0) == code
    assert capsys.readouterr().out.startswith(f"{status:<5} gpu")
    app([], standalone_mode=False, obj=CliConsole(json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is (code == 0)
    assert document["checks"] == [{"status": status, "name": "gpu", "detail": "one", "fix": "fix it"}]
