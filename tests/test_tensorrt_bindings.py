"""TensorRT and CUDA as they really are: every name our source uses exists in the genuine bindings of each version.

The Python bindings are small wheels of their own; the libraries under them are large and need a GPU. So the bindings
are imported, in a process of their own, over a stub library that exports the symbols they are linked against. That
gives all classes, enums and call signatures, and nothing that runs. What is looked up is read from our source, so this
cannot fall behind it: objects of TensorRT are named by their kind there (builder, network, context, ...).
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from genuine_packages import ROOT, cache_folder, environment, fetch, run_python

SOURCES = [
    ROOT / "export" / "celebctl_export" / "to_tensorrt.py",
    ROOT / "runtime" / "celebctl_runtime" / "backends" / "tensorrt_runner.py",
    ROOT / "runtime" / "celebctl_runtime" / "backends" / "cuda_memory.py",
]
TENSORRT = ["10.16.1.11", "11.4.0.106"]
CUDA = ["12.9.4", "13.4.4"]
KINDS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "error": "ParserError",
}
SYMBOLS = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL"
    " createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion initLibNvInferPlugins"
    " getInferLibVersion getPluginRegistry getLogger"
).split()

# Runs in the other process: for every name, whether it exists, and what it says about how it is called.
LOOK_UP = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
answers = {}
for name in json.load(sys.stdin):
    found = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
        answers[name] = str(getattr(found, "__doc__", "") or "")
    except AttributeError:
        answers[name] = None
print(json.dumps(answers))
"""
# The same, but our own code: loading, its logger and progress monitor, and what it says when nothing can start.
START = """
import json, sys
from pathlib import Path
from celebctl_export.tensorrt_plan import EnginePlan
from celebctl_export.to_tensorrt import _make_monitor, build_engine
from celebctl_runtime.errors import SetupError
from celebctl_runtime.backends.tensorrt_runner import TensorRt
library = TensorRt.load()
trt = library.trt
library.log.log(trt.ILogger.Severity.ERROR, "broken")
library.log.log(trt.ILogger.Severity.WARNING, "fine")
seen = []
monitor = _make_monitor(trt, lambda fraction, phase: seen.append([fraction, phase]))
monitor.phase_start("tactics", None, 2)
goes_on = monitor.step_complete("tactics", 0)
monitor.phase_finish("tactics")
output = []
for start in (
    lambda: build_engine(library, Path("."), EnginePlan("x.plan", "x.onnx", "", (), {}), Path("x"), print),
    lambda: library.deserialize(b"", "x.plan"),
):
    try:
        start()
    except SetupError as problem:
        output.append(problem.problem)
dtypes = [str(trt.nptype(kind).__name__) for kind in (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.INT64)]
print(json.dumps({"version": library.version, "seen": seen, "goes_on": goes_on, "output": output, "dtypes": dtypes,
                  "flag": 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
                  "shape": list(trt.Dims((1, 4, 64, 64)))}))
"""
NO_DRIVER = """
import json
from celebctl_runtime.backends.cuda_memory import Cuda
from celebctl_runtime.errors import SetupError
try:
    print(json.dumps(Cuda.load().gpu().name))
except SetupError as problem:
    print(json.dumps(problem.problem))
"""


@pytest.fixture(scope="module", params=TENSORRT)
def tensorrt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A version of TensorRT, and the environment in which a process can import its bindings."""
    version = str(request.param)
    if sys.platform != "linux":
        pytest.skip("the stub libraries are built for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the stub libraries with")
    name = f"tensorrt-{version}-cp{sys.version_info.major}{sys.version_info.minor}"
    folder = fetch([f"tensorrt-cu13-bindings=={version}"], cache_folder(request, tmp_path_factory) / name)
    shim = folder / "tensorrt" / "__init__.py"  # what the package tensorrt-cu13 itself consists of
    shim.parent.mkdir(exist_ok=True)
    shim.write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    major = version.partition(".")[0]
    stub = folder / "stub.c"
    stub.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(folder / file), str(stub)], check=True
        )
    return version, environment(folder, LD_LIBRARY_PATH=str(folder))


@pytest.fixture(scope="module", params=CUDA)
def cuda(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process can import cuda-python of some version."""
    name = f"cuda-{request.param}-cp{sys.version_info.major}{sys.version_info.minor}"
    needed = [f"cuda-bindings=={request.param}", "cuda-pathfinder"]
    return environment(fetch(needed, cache_folder(request, tmp_path_factory) / name))


def trees() -> Iterator[ast.Module]:
    for path in SOURCES:
        yield ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is such a chain, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def tensorrt_name(chain: str) -> str | None:
    """What a chain of our source means in the `tensorrt` module: `trt.X`, `library.trt.X`, or a kind's member."""
    parts = chain.removeprefix("self.").removeprefix("_").split(".")
    if "trt" in parts[:2]:
        return ".".join(parts[parts.index("trt") + 1 :]) or None
    if len(parts) > 1 and parts[0] in KINDS:
        return ".".join([KINDS[parts[0]], *parts[1:]])
    return None


def cuda_name(chain: str) -> str | None:
    """The same for the CUDA runtime: `cudart.X` wherever it stands, and `kinds.X` for its errors."""
    parts = chain.split(".")
    if "cudart" in parts and parts[-1] != "cudart":
        return ".".join(parts[parts.index("cudart") + 1 :])
    return f"cudaError_t.{parts[1]}" if parts[0] == "kinds" and len(parts) == 2 else None


def used(translate: Any) -> set[str]:
    """Every name that our source takes from a library."""
    chains = {dotted(node) for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for chain in chains if chain and (name := translate(chain))}


def calls(translate: Any) -> Iterator[tuple[str, int, set[str]]]:
    """Every call into a library: its name, how many arguments by place, and which by name."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := translate(dotted(node.func))):
                yield name, len(node.args), {keyword.arg or "" for keyword in node.keywords}


def deferred_calls() -> Iterator[tuple[str, int]]:
    """Calls of the CUDA runtime through Cuda.call(function, ...) and weakref.finalize(owner, function, ...)."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                skip = {"call": 0, "finalize": 1}.get(node.func.attr)
                if skip is not None and (name := cuda_name(dotted(node.args[skip]))):
                    yield name, len(node.args) - skip - 1


def signatures(doc: str, name: str) -> list[list[str]]:
    """The parameters of every overload that a pybind docstring lists, `self` left out."""
    found: list[list[str]] = []
    for text in re.findall(rf"^(?:\d+\. )?{name}\(self: [\w.]+(.*)\) -> ", doc, re.MULTILINE):
        plain = re.sub(r"<[^>]*>", "", text)
        while "[" in plain:
            plain = re.sub(r"\[[^\[\]]*\]", "", plain)
        found.append([part.strip() for part in plain.split(",") if part.strip()])
    return found


def accepts(parameters: list[str], places: int, names: set[str]) -> bool:
    known = [part.partition(":")[0] for part in parameters]
    needed = [name for name, part in zip(known, parameters, strict=True) if "=" not in part]
    given = {*known[:places], *names}
    return places <= len(known) and names <= set(known) and set(needed) <= given


def test_the_source_is_read_as_meant() -> None:
    """Neither list may be empty by accident: a few names of each file are known to be there."""
    names = used(tensorrt_name)
    assert {
        "Builder",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IBuilderConfig.progress_monitor",
        "OnnxParser.supports_model_v2",
        "ParserError.node_name",
        "ICudaEngine.get_tensor_mode",
        "IExecutionContext.execute_async_v3",
        "ILogger.Severity.ERROR",
        "BuilderFlag.TF32",
    } <= names
    assert "EXPLICIT_BATCH" not in " ".join(names) and "BuilderFlag.FP16" not in names
    assert {"cudaGraphLaunch", "cudaError_t.cudaErrorMemoryAllocation", "cudaStreamEndCapture"} <= used(cuda_name)
    assert {("cudaMemcpyAsync", 5), ("cudaSetDevice", 1), ("cudaFree", 1)} <= set(deferred_calls())


def test_every_name_exists_in_tensorrt(tensorrt: tuple[str, dict[str, str]]) -> None:
    version, env = tensorrt
    answers = run_python(LOOK_UP, env, "tensorrt", data=sorted(used(tensorrt_name)))
    missing = [name for name, doc in answers.items() if doc is None]
    assert not missing, f"TensorRT {version} lacks {missing}"


def test_every_call_fits_a_signature_of_tensorrt(tensorrt: tuple[str, dict[str, str]]) -> None:
    version, env = tensorrt
    made = sorted((name, places, sorted(names)) for name, places, names in calls(tensorrt_name))
    classes = {name for name, _, _ in made if name[0].isupper() and "." not in name}
    asked = {name: f"{name}.__init__" if name in classes else name for name, _, _ in made}
    answers = run_python(LOOK_UP, env, "tensorrt", data=sorted(asked.values()))
    checked = 0
    for name, places, names in made:
        doc, plain = answers[asked[name]], asked[name].rpartition(".")[2]
        overloads = signatures(doc, plain)
        if name == "nptype":  # plain Python
            continue
        if plain == "__init__" and name.partition(".")[0] in ("ILogger", "IProgressMonitor"):
            places -= 1  # called with self
        assert any(accepts(parameters, places, set(names)) for parameters in overloads), (
            f"TensorRT {version}: {name} with {places} arguments does not fit {overloads}"
        )
        checked += 1
    assert checked > 25


def test_our_overrides_have_the_signatures_tensorrt_calls(tensorrt: tuple[str, dict[str, str]]) -> None:
    _, env = tensorrt
    methods = {
        f"{tensorrt_name(dotted(node.bases[0]))}.{method.name}": [argument.arg for argument in method.args.args[1:]]
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases and tensorrt_name(dotted(node.bases[0]))
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }
    answers = run_python(LOOK_UP, env, "tensorrt", data=sorted(methods))
    ours = {name: parameters for name, parameters in methods.items() if answers[name] is not None}
    assert {"ILogger.log", "IProgressMonitor.phase_start", "IProgressMonitor.step_complete"} <= set(ours)
    for name, parameters in ours.items():
        (theirs,) = signatures(answers[name], name.rpartition(".")[2])
        assert parameters == [part.partition(":")[0] for part in theirs]


def test_our_code_meets_the_genuine_bindings(tensorrt: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """Loading, logging, progress and refusals, as far as a library goes that starts nothing."""
    version, env = tensorrt
    answer = run_python(START, env)
    # The flag's number differs between the two, so it is never written as a number.
    assert answer["version"] == version and answer["flag"] == {"10": 2, "11": 1}[version.partition(".")[0]]
    assert answer["seen"] == [[0.0, "tactics"], [0.5, "tactics"], [0.5, "tactics"]] and answer["goes_on"] is True
    assert len(answer["output"]) == 2 and all("cannot start" in problem for problem in answer["output"])
    assert answer["dtypes"] == ["float32", "float16", "int64"] and answer["shape"] == [1, 4, 64, 64]


def test_every_name_exists_in_the_cuda_runtime(cuda: dict[str, str]) -> None:
    answers = run_python(LOOK_UP, cuda, "cuda.bindings.runtime", data=sorted(used(cuda_name)))
    assert not [name for name, doc in answers.items() if doc is None]


def test_every_call_of_the_cuda_runtime_has_the_right_number_of_arguments(cuda: dict[str, str]) -> None:
    made = {*deferred_calls(), *((name, places) for name, places, _ in calls(cuda_name))}
    answers = run_python(LOOK_UP, cuda, "cuda.bindings.runtime", data=sorted({name for name, _ in made}))
    assert len(made) > 10
    for name, places in made:
        first = re.match(rf"{name}\((.*)\)", answers[name])
        assert first is not None, answers[name][:200]
        assert len([part for part in first[1].split(",") if part.strip()]) == places, (name, first[0])


def test_a_machine_without_a_driver_is_an_error(cuda: dict[str, str]) -> None:
    answer = run_python(NO_DRIVER, cuda)
    assert "driver" in answer or "GPU" in answer or "NVIDIA" in answer
