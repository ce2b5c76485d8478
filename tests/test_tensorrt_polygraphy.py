"""Polygraphy as it really is: our measuring runs its genuine ONNX Runtime half, and calls its TensorRT half rightly.

Its wheel is small and imports without TensorRT, which it looks for when an engine is opened. So the half that needs a
GPU is only made, and held against the calls of our source by its signatures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import write_bundle
from genuine_packages import cache_folder, environment, fetch, run_python

POLYGRAPHY = ["0.53.4", "0.53.6"]  # the oldest that the extra allows, and the newest known

# Runs in the other process; what it says on stdout before the answer is Polygraphy's own talk.
MEASURE = """
import json, sys
from pathlib import Path
import numpy, onnxruntime, polygraphy
from celebctl_export.tensorrt_parity import make_feeds, measure_engine, polygraphy_runners
from celebctl_export.tensorrt_plan import plan_engines
from celebctl_runtime.bundle.bundle import Bundle
bundle = Bundle.open(Path(sys.argv[1]))
make, outputs, rows = polygraphy_runners(), {}, []
for plan in plan_engines(bundle.manifest, dynamic=False):
    for index, profile in enumerate(plan.profiles):
        _, genuine = make(bundle.file(plan.onnx), b"", index)
        feeds = make_feeds(bundle, profile, plan)
        feeds = {name: array for name, array in feeds.items() if name not in plan.inputs_from_data}
        with genuine as runner:
            got = runner.infer(feeds)
        session = onnxruntime.InferenceSession(str(bundle.file(plan.onnx)), providers=["CPUExecutionProvider"])
        wanted = session.run(None, feeds)
        outputs[profile.graph] = {
            name: bool(numpy.array_equal(got[name], array))
            for name, array in zip([value.name for value in session.get_outputs()], wanted, strict=True)
        }
    if not plan.inputs_from_data:  # ONNX Runtime in TensorRT's place: the graph is the engine
        both = lambda path, content, profile: [make(path, content, profile)[1] for _ in "12"]
        rows += [[row.graph, row.passed, row.max_abs_error, row.tensorrt_ms, row.onnxruntime_ms]
                 for row in measure_engine(bundle, plan, b"", both, {})]
print(json.dumps({"version": polygraphy.__version__, "outputs": outputs, "rows": rows}))
"""
BIND = """
import inspect, json
from pathlib import Path
from polygraphy.backend import onnxrt, trt
from celebctl_export.tensorrt_parity import Runner, polygraphy_runners
ours, _ = polygraphy_runners()(Path("graph.onnx"), b"an engine", 1)
inspect.signature(trt.TrtRunner).bind(trt.EngineFromBytes(b"an engine"), optimization_profile=1)
inspect.signature(onnxrt.SessionFromOnnx).bind("graph.onnx", providers=["cpu"])
for kind in (trt.TrtRunner, onnxrt.OnnxrtRunner):
    inspect.signature(kind.infer).bind(ours, {"x": 0})
    inspect.signature(kind.last_inference_time).bind(ours)
    inspect.signature(kind.__enter__).bind(ours)
    inspect.signature(kind.__exit__).bind(ours, None, None, None)
try:
    with ours:
        output = "started"
except Exception as error:
    output = str(error)
print(json.dumps({"type": type(ours).__name__, "profile": ours.optimization_profile, "output": output,
                  "used": [name for name in vars(Runner) if name in ("infer", "last_inference_time")]}))
"""


@pytest.fixture(scope="module", params=POLYGRAPHY)
def polygraphy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A version of Polygraphy, and the environment in which a process can import it and no TensorRT."""
    version = str(request.param)
    folder = fetch([f"polygraphy=={version}"], cache_folder(request, tmp_path_factory) / f"polygraphy-{version}")
    return version, environment(folder, POLYGRAPHY_AUTOINSTALL_DEPS="0")


def test_its_onnx_runtime_runs_every_graph_through_our_code(
    polygraphy: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """Bit for bit what ONNX Runtime gives, under the outputs' names; compared with itself it is off by nothing."""
    version, env = polygraphy
    bundle = write_bundle(tmp_path / "toy", encodes=True)
    answer = run_python(MEASURE, env, str(bundle.path))
    assert answer["version"] == version
    outputs: dict[str, dict[str, bool]] = answer["outputs"]
    assert outputs.keys() == bundle.manifest.graphs.keys()
    for graph, equal in outputs.items():
        assert equal.keys() == bundle.manifest.graphs[graph].outputs.keys() and all(equal.values()), graph
    rows: list[list[Any]] = answer["rows"]
    assert {row[0] for row in rows} == bundle.manifest.graphs.keys() - {"text_encoder"}
    for _, passed, error, first, second in rows:
        assert passed is True and error == 0 and first > 0 and second > 0


def test_its_tensorrt_takes_our_calls(polygraphy: tuple[str, dict[str, str]]) -> None:
    """As far as it goes without TensorRT: made as we make it, and the first thing it misses is TensorRT."""
    answer = run_python(BIND, polygraphy[1])
    assert answer["type"] == "TrtRunner" and answer["profile"] == 1
    assert answer["used"] == ["infer", "last_inference_time"]
    assert "tensorrt" in answer["output"]


def test_it_finds_the_cuda_runtime_of_pips_package(polygraphy: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    """CUDA 13's package has the library where Polygraphy does not look by itself."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a library to find is built with a C compiler, for Linux")
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    (tmp_path / "empty.c").touch()
    subprocess.run([compiler, "-shared", "-o", str(library), str(tmp_path / "empty.c")], check=True)
    env = {**polygraphy[1], "PYTHONPATH": f"{polygraphy[1]['PYTHONPATH']}{os.pathsep}{tmp_path}", "LD_LIBRARY_PATH": ""}
    find = """
import json
from polygraphy.cuda.cuda import Cuda
try:
    print(json.dumps(Cuda().handle._name))
except OSError as error:
    print(json.dumps(str(error)))
"""
    ours = "from celebctl_export.tensorrt_parity import polygraphy_runners\npolygraphy_runners()\n"
    assert run_python(ours + find, env) == str(library)
    assert run_python(find, env) != str(library), "it finds it now: show_cuda_runtime can go"


def test_it_leaves_stdout_to_us(polygraphy: tuple[str, dict[str, str]]) -> None:
    """`--json` writes one document there; Polygraphy by itself would log into it."""
    talk = """
import contextlib, io, json
from celebctl_export.tensorrt_parity import polygraphy_runners
polygraphy_runners()
from polygraphy.logger import G_LOGGER
captured = io.StringIO()
with contextlib.redirect_stdout(captured):
    G_LOGGER.warning("careful")
    G_LOGGER.info("by the way")
print(json.dumps(captured.getvalue()))
"""
    assert run_python(talk, polygraphy[1]) == ""
