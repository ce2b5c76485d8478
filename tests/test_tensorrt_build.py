"""From a bundle to engines: the plan is data, building is idempotent and stoppable, nothing unmeasured is listed, and
graphs that TensorRT would refuse are found without it."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from bundle_doubles import make_identity, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from polygraphy_doubles import runners
from tensorrt_doubles import FakeTrt, make_believe, open_session

from celebctl_export.operators import OPSETS, SUPPORTED, check_operators
from celebctl_export.tensorrt_parity import EngineParity, make_feeds, measurer, polygraphy_runners
from celebctl_export.tensorrt_plan import EnginePlan, EngineRequest, describe, plan_engines
from celebctl_export.to_tensorrt import Phases, Progress, build_engines, with_data_inputs
from celebctl_runtime.bundle import Bundle
from celebctl_runtime.engines import (
    Machine,
    Profile,
    choose,
    engine_folder,
    engine_key,
    has_engines,
    keep_engines,
    make_seal_key,
    read_records,
    read_seal_key,
)
from celebctl_runtime.errors import Busy, EnvironmentProblem, InputRejected, IntegrityProblem, NotFound, UsageProblem
from celebctl_runtime.manifest import Manifest

SEAL_KEY = bytes(range(32))
MACHINE = Machine("11.4.0.106", "NVIDIA Make-Believe 1000", "9.0")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@functools.cache
def toy_manifest() -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return write_bundle(Path(folder) / "bundle").manifest


def build(bundle: Bundle, *sizes: str, **options: Any) -> list[Any]:
    requests = [EngineRequest.parse(size) for size in sizes]
    plans = plan_engines(bundle.manifest, requests, dynamic=options.pop("dynamic", False))
    if "library" not in options:
        _, _, options["library"], options["cuda"] = make_believe()
    return build_engines(bundle, plans, SEAL_KEY, **options)


def test_the_plan_names_every_engine(bundle: Bundle) -> None:
    plans = {plan.file: plan for plan in plan_engines(bundle.manifest, [EngineRequest(2, 32, 48)])}
    assert set(plans) == {
        "text_encoder-dynamic.plan",
        "step-b2-32x48.plan",
        "step-dynamic.plan",
        "step_nocfg-b2-32x48.plan",
        "step_nocfg-dynamic.plan",
        "vae_decoder-b2-32x48.plan",
        "vae_decoder-dynamic.plan",
    }
    static, dynamic = plans["step-b2-32x48.plan"], plans["step-dynamic.plan"]
    assert static.onnx == "step.onnx" and static.inputs_from_data == {}
    (profile,) = static.profiles
    assert profile.slack == 0
    assert {name: shapes[1] for name, shapes in profile.shapes.items()} == {
        "state": (2, 2, 4, 8, 12),
        "step": (1,),
        "noise": (2, 4, 8, 12),
        "context": (2, 2, 77, 8),
        "table": (1000, 2, 4),
        "aux": (1000, 3),
    }
    assert dynamic.profiles[0].shapes["noise"] == ((1, 4, 4, 4), (1, 4, 8, 8), (4, 4, 16, 16))
    text = plans["text_encoder-dynamic.plan"]
    table = bundle.manifest.token_tables[0]
    assert text.inputs_from_data == {"token_table": "token_table.bin"}
    assert text.profiles[0].shapes["input_ids"] == ((1, 77), (2, 77), (8, 77))
    assert text.profiles[0].shapes["token_table"] == ((table.rows, table.width),) * 3


def test_without_sizes_the_native_one_is_planned(bundle: Bundle) -> None:
    assert [plan.file for plan in plan_engines(bundle.manifest, dynamic=False)] == [
        "step-b1-32x32.plan",
        "step_nocfg-b1-32x32.plan",
        "text_encoder-dynamic.plan",
        "vae_decoder-b1-32x32.plan",
    ]


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(1, 30), st.integers(1, 30))
def test_some_engine_fits_every_size_that_was_asked_for(batch: int, rows: int, columns: int) -> None:
    request = EngineRequest(batch, 8 * rows, 8 * columns)
    for plan in plan_engines(toy_manifest(), [request]):
        for profile in plan.profiles:
            for least, best, most in profile.shapes.values():
                assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
            if plan.file.endswith("dynamic.plan") and "noise" in profile.shapes:
                wanted = {name: shapes[1] for name, shapes in profile.shapes.items()}
                wanted |= {
                    "noise": (batch, 4, 2 * rows, 2 * columns),
                    "state": (2, batch, 4, 2 * rows, 2 * columns),
                    "context": (*wanted["context"][:1], batch, *wanted["context"][2:]),
                }
                assert profile.fits(wanted)


@pytest.mark.parametrize(
    "text", ["512", "512x512", "0x512x512", "16x32x32", "1x33x32", "1x32x0", "1x32x8192", "axbxc", "-1x32x32"]
)
def test_sizes_that_cannot_be(bundle: Bundle, text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        plan_engines(bundle.manifest, [EngineRequest.parse(text)])
    assert caught.value.hint


def test_the_whole_plan_is_one_document(bundle: Bundle) -> None:
    plans = plan_engines(bundle.manifest, [EngineRequest(1, 32, 32)], workspace_bytes=1 << 20)
    document = json.loads(json.dumps(describe(bundle.manifest, plans, MACHINE)))
    key = engine_key(bundle.manifest, MACHINE)
    assert document["key"] == key and document["strongly_typed"] is True and document["precision"] == "float32"
    assert document["machine"] == {"tensorrt": "11.4.0.106", "gpu": MACHINE.gpu, "compute_capability": "9.0"}
    step = next(engine for engine in document["engines"] if engine["onnx"] == "step.onnx")
    assert step["path"] == f"engines/{key}/step-b1-32x32.plan" and step["workspace_bytes"] == 1 << 20
    unknown = describe(bundle.manifest, plans, None)
    assert unknown["machine"] is None and unknown["engines"][0]["path"].startswith("engines/KEY/")


def test_the_key_changes_with_all_that_an_engine_is_bound_to(bundle: Bundle, tmp_path: Path) -> None:
    base = engine_key(bundle.manifest, MACHINE)
    for change in ({"tensorrt": "10.16.1.11"}, {"gpu": "other"}, {"compute_capability": "8.9"}):
        assert engine_key(bundle.manifest, replace(MACHINE, **change)) != base
    bundle.add(make_identity("alice"))
    assert engine_key(bundle.manifest, MACHINE) == base
    other = write_bundle(tmp_path / "other", seed=99)
    assert engine_key(other.manifest, MACHINE) != base


def test_engines_are_built_once(bundle: Bundle) -> None:
    trt, _, library, cuda = make_believe()
    first = build(bundle, "1x32x32", library=library, cuda=cuda)
    assert len(trt.built) == 4 and has_engines(bundle.path)
    assert build(bundle, "1x32x32", library=library, cuda=cuda) == first and len(trt.built) == 4
    build(bundle, "1x32x32", "1x16x16", library=library, cuda=cuda)
    assert len(trt.built) == 7  # the text encoder serves both
    folder = engine_folder(bundle.path, engine_key(bundle.manifest, library.machine(cuda)))
    assert {record.file for record in first} <= {record.file for record in read_records(folder, SEAL_KEY)}
    (folder / "step-b1-32x32.plan").unlink()
    build(bundle, "1x32x32", library=library, cuda=cuda)
    assert len(trt.built) == 8


def test_engines_of_somebody_else_are_replaced(bundle: Bundle) -> None:
    trt, _, library, cuda = make_believe()
    build(bundle, "1x32x32", library=library, cuda=cuda)
    plans = plan_engines(bundle.manifest, [EngineRequest(1, 32, 32)], dynamic=False)
    build_engines(bundle, plans, bytes(32), library=library, cuda=cuda)
    assert len(trt.built) == 8


def test_one_size_more_takes_nothing_away_from_the_dynamic_engine(bundle: Bundle) -> None:
    trt, _, library, cuda = make_believe()

    def widest(*sizes: str) -> tuple[Any, Any]:
        records = build(bundle, *sizes, dynamic=True, library=library, cuda=cuda)
        (record,) = [one for one in records if one.file == "step-dynamic.plan"]
        least, _, most = record.profiles[0].shapes["noise"]
        return least, most

    assert widest("1x64x32") == ((1, 4, 4, 4), (4, 4, 16, 16))
    assert widest("1x32x96") == ((1, 4, 4, 4), (4, 4, 16, 24)), "wider"
    assert widest("1x128x32") == ((1, 4, 4, 4), (4, 4, 32, 24)), "higher, and still as wide"
    count = len(trt.built)
    assert widest("1x32x32") == ((1, 4, 4, 4), (4, 4, 32, 24))
    assert len(trt.built) == count + 3, "the static ones alone: a smaller size asks nothing new of the dynamic ones"


def test_the_bundle_stays_what_it_was(bundle: Bundle) -> None:
    before = bundle.path.joinpath("manifest.json").read_bytes()
    build(bundle, "1x32x32")
    assert bundle.path.joinpath("manifest.json").read_bytes() == before
    Bundle.open(bundle.path, verify="full")
    assert not list(bundle.path.rglob("*.part")) and not list(bundle.path.rglob(".*plan*"))


def test_engines_outlive_an_export_that_changes_no_graph(bundle: Bundle, tmp_path: Path) -> None:
    trt, _, library, cuda = make_believe()
    records = build(bundle, "1x32x32", library=library, cuda=cuda)
    same, other = write_bundle(tmp_path / "same"), write_bundle(tmp_path / "other", seed=99)
    key = engine_key(bundle.manifest, MACHINE)
    assert keep_engines(bundle.path, same.path, same.manifest) == [key]
    assert keep_engines(bundle.path, other.path, other.manifest) == []
    assert keep_engines(other.path, same.path, same.manifest) == []
    assert read_records(engine_folder(same.path, key), SEAL_KEY) == records
    assert build(same, "1x32x32", library=library, cuda=cuda) == records and len(trt.built) == 4
    bundle.path.joinpath("engines", key, "engines.json").write_text("[]")
    assert keep_engines(bundle.path, other.path, same.manifest) == []


def test_a_damaged_bundle_is_not_built_from(bundle: Bundle) -> None:
    file = bundle.file("step.onnx")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityProblem, match=r"step\.onnx"):
        build(bundle, "1x32x32")
    assert not has_engines(bundle.path)


def test_the_timing_cache_is_kept_and_one_that_does_not_fit_is_left(bundle: Bundle) -> None:
    _, _, library, cuda = make_believe()
    build(bundle, "1x32x32", library=library, cuda=cuda)
    (cache,) = bundle.path.glob("engines/*/timing.cache")
    assert cache.read_bytes().count(b".onnx") == 4
    cache.write_bytes(b"of another GPU")
    build(bundle, "1x16x16", library=library, cuda=cuda)
    assert cache.read_bytes().count(b".onnx") == 3 and b"another GPU" not in cache.read_bytes()


def test_progress_runs_from_nothing_to_all_and_never_back(bundle: Bundle) -> None:
    seen: list[Progress] = []
    build(bundle, "1x32x32", on_progress=seen.append)
    for number in range(4):
        fractions = [progress.fraction for progress in seen if progress.number == number]
        assert fractions[0] == 0 and fractions[-1] == 1 and fractions == sorted(fractions) and len(fractions) > 8
    assert {progress.total for progress in seen} == {4}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["start", "step", "finish"]), st.sampled_from("abc"), st.integers(-1, 5))))
def test_phases_in_any_order_are_a_fraction(events: list[tuple[str, str, int]]) -> None:
    phases, last = Phases(), 0.0
    for kind, name, steps in events:
        if kind == "start":
            phases.start(name, steps)
        else:
            getattr(phases, kind)(name)
        assert last <= phases.fraction <= 1
        last = phases.fraction


def test_ctrl_c_ends_a_build_and_keeps_what_was_finished(bundle: Bundle) -> None:
    trt, _, library, cuda = make_believe()

    def stop(progress: Progress) -> None:
        if progress.number == 2 and progress.fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, "1x32x32", library=library, cuda=cuda, on_progress=stop)
    assert len(trt.built) == 2
    build(bundle, "1x32x32", library=library, cuda=cuda)
    assert len(trt.built) == 4


def test_a_graph_that_tensorrt_refuses_is_named_with_its_node(bundle: Bundle) -> None:
    trt, _, library, cuda = make_believe()
    trt.refuses = "Resize"
    with pytest.raises(InputRejected, match=r"vae_decoder\.onnx: Resize .*not supported") as caught:
        build(bundle, "1x32x32", library=library, cuda=cuda)
    assert "--check" in caught.value.hint


@pytest.mark.parametrize(
    ("complaint", "words"), [("Out of memory: 12 GiB", "free memory"), ("no tactic found", "no tactic")]
)
def test_a_build_that_fails_says_why(bundle: Bundle, complaint: str, words: str) -> None:
    trt, _, library, cuda = make_believe()
    trt.fails = complaint
    with pytest.raises(EnvironmentProblem, match=words):
        build(bundle, "1x32x32", library=library, cuda=cuda)
    assert not has_engines(bundle.path)


def test_two_builders_do_not_meet(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("celebctl_export.to_tensorrt._WAIT", 0.1)
    folder = engine_folder(bundle.path, engine_key(bundle.manifest, MACHINE))
    folder.mkdir(parents=True)
    with FileLock(folder.with_suffix(".lock")), pytest.raises(Busy):
        build(bundle, "1x32x32")


def test_the_table_becomes_an_input_and_nothing_else_changes(bundle: Bundle) -> None:
    path = bundle.file("text_encoder.onnx")
    model = onnx.ModelProto.FromString(with_data_inputs(path, {"token_table": "token_table.bin"}))
    assert [value.name for value in model.graph.input] == ["input_ids", "token_table"]
    cast(Any, onnx).checker.check_model(model)
    table = bundle.manifest.token_tables[0]
    rows = np.fromfile(bundle.file(table.file), np.float32).reshape(table.rows, table.width)
    ids = np.arange(77, dtype=np.int64)[None]
    (ours,) = open_session(model, bundle.path).run(None, {"input_ids": ids, "token_table": rows})
    (theirs,) = open_session(cast(Any, onnx).load(str(path), load_external_data=False), bundle.path).run(
        None, {"input_ids": ids}
    )
    assert np.array_equal(ours, theirs)
    with pytest.raises(IntegrityProblem, match="no initializer"):
        with_data_inputs(bundle.file("step.onnx"), {"token_table": "token_table.bin"})


def test_every_output_is_measured_and_written_down(bundle: Bundle) -> None:
    heard: list[EngineParity] = []
    records = build(bundle, "1x32x32", measure=measurer(bundle, runners(0.0), heard.extend))
    assert {row.output for row in heard} == {"context", "next_state", "next_step", "image"}
    assert all(row.passed and row.max_abs_error == 0 and row.tensorrt_ms == 2.0 for row in heard)
    assert [row["engine"] for record in records for row in record.parity] == [row.engine for row in heard]


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_an_engine_that_is_off_is_never_listed(bundle: Bundle, error: float) -> None:
    with pytest.raises(IntegrityProblem, match=r"step-b1-32x32\.plan is off"):
        build(bundle, "1x32x32", measure=measurer(bundle, runners(error)))
    assert not has_engines(bundle.path) and not list(bundle.path.rglob("*.plan"))


def test_measuring_feeds_real_tables_and_ids(bundle: Bundle) -> None:
    plans = plan_engines(bundle.manifest, dynamic=False)
    feeds = {plan.onnx: make_feeds(bundle, plan.profiles[0], plan) for plan in plans}
    assert feeds["text_encoder.onnx"]["input_ids"].max() < bundle.manifest.token_tables[0].first_spare_row
    table = feeds["step.onnx"]["table"]
    assert table.shape == (1000, 2, 4) and np.abs(table[:10]).sum(axis=(1, 2)).all() and not table[10:].any()


def test_without_polygraphy_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(EnvironmentProblem) as caught:
        polygraphy_runners()
    assert "celebctl[trt]" in caught.value.hint


def test_the_seal_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "engines.key"
    with pytest.raises(NotFound, match="no TensorRT engine"):
        read_seal_key(path)
    key = make_seal_key(path)
    assert len(key) == 32 and make_seal_key(path) == key == read_seal_key(path)
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("not hex")
    with pytest.raises(IntegrityProblem, match=r"engines\.key"):
        read_seal_key(path)


def test_the_closest_profile_is_chosen(bundle: Bundle) -> None:
    records = build(bundle, "1x32x32", dynamic=True)
    small, large = {"latent": (1, 4, 8, 8)}, {"latent": (3, 4, 16, 8)}
    assert [choose(records, "vae_decoder", shapes)[0].file for shapes in (small, large)] == [  # type: ignore[index]
        "vae_decoder-b1-32x32.plan",
        "vae_decoder-dynamic.plan",
    ]
    for shapes in ({"latent": (5, 4, 8, 8)}, {"latent": (1, 4, 8)}, {"other": (1, 4, 8, 8)}):
        assert choose(records, "vae_decoder", shapes) is None
    assert not Profile("g", {"x": ((1,), (1,), (2,))}).fits({"x": (3,)})


@pytest.mark.parametrize("graph", ["text_encoder", "step", "vae_decoder"])
def test_exported_graphs_ask_for_nothing_tensorrt_lacks(exported_path: Path, graph: str) -> None:
    report = check_operators(exported_path / f"{graph}.onnx")
    assert report.passed and report.problems == () and report.opset == 23
    assert sum(report.operators.values()) > 20 and report.untyped == 0
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


OUTSIDE = {
    "operator": ("y = Det(x)", "ai.onnx:Det is not supported"),
    "domain": ("y = com.microsoft.FastGelu(x)", "com.microsoft:FastGelu is not supported"),
    "type": ("d = Cast<to = 11>(x)  y = Sin(d)", "type DOUBLE is not supported"),
    "mixed": ("h = Cast<to = 10>(x)  y = Where(c, x, h)", "mixes FLOAT and FLOAT16"),
    "far on": ("g = GroupNormalization<num_groups = 3>(x, s, s)  h = Cast<to = 10>(g)  y = Add(g, h)", "mixes FLOAT"),
    "attention": ("y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)", "four axes"),
    "resize": ('y = Resize<mode = "cubic">(x, , s)', "mode 'cubic'"),
    "norm": ("y, mean = LayerNormalization(x, w)", "only the first output"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_what_tensorrt_lacks_is_found(case: str, tmp_path: Path) -> None:
    nodes, words = OUTSIDE[case]
    report = check(nodes, tmp_path)
    assert not report.passed
    assert any(words in problem.problem for problem in report.problems), report.problems


def test_bodies_of_branches_are_looked_into(tmp_path: Path) -> None:
    branch = "yes () => (float[2, 3, 8] a) { a = Det(x) }"
    other = "no () => (float[2, 3, 8] b) { b = Identity(x) }"
    report = check(f"y = If(c0)<then_branch = {branch}, else_branch = {other}>", tmp_path)
    assert [problem.operator for problem in report.problems] == ["Det"]


def test_types_in_bodies_are_looked_at(tmp_path: Path) -> None:
    branch = "yes () => (float[2, 3, 8] a) { d = Cast<to = 11>(x)  e = Sin(d)  a = Cast<to = 1>(e) }"
    other = "no () => (float[2, 3, 8] b) { b = Identity(x) }"
    report = check(f"y = If(c0)<then_branch = {branch}, else_branch = {other}>", tmp_path)
    assert [problem.operator for problem in report.problems if "DOUBLE" in problem.problem] == ["Sin", "Cast"]
    assert report.untyped == 0


def test_types_are_followed_past_what_onnx_gives_up_on(tmp_path: Path) -> None:
    """Where a shape cannot be computed onnx infers no type either, and from there on nothing; types need no shape.
    Behind an operator that nobody knows nothing is known, and that is said of each node."""
    report = check("r = MatMul(x, s)  k = Sin(r)  h = Cast<to = 10>(x)  y = Add(k, h)", tmp_path)
    assert report.untyped == 0 and ["mixes FLOAT and FLOAT16" in one.problem for one in report.problems] == [True]
    report = check("g = GroupNormalization<num_groups = 3>(x, s, s)  h = Sin(g)  y = Cos(h)", tmp_path)
    assert report.untyped == 0
    report = check("g = com.microsoft.Strange(x)  h = Sin(g)  k = Cast<to = 10>(h)  y = Cos(k)", tmp_path)
    assert report.untyped_nodes == ("Sin h", "Cast k") and report.untyped == 2
    assert report.to_json()["untyped"] == 2 and len(report.to_json()["untyped_nodes"]) == 2


def test_a_graph_of_any_size_is_checked_without_its_weights(tmp_path: Path) -> None:
    """Thousands of nodes on 27 GB of float16 weights that nobody has, and no shape known from the first node on."""
    helper, half, count = onnx.helper, onnx.TensorProto.FLOAT16, 800
    nodes = [helper.make_node("MatMul", ["x", "odd"], ["v0"], name="first")]
    weights = [weight("odd", [3, 5], half)]
    for number in range(count):
        weights.append(weight(f"w{number}", [4096, 4096], half))
        steps = [("MatMul", f"w{number}"), ("Add", "bias"), ("Sigmoid", ""), ("Identity", ""), ("Softmax", "")]
        for step, (operator, other) in enumerate(steps):
            made = f"v{number + 1}" if step == len(steps) - 1 else f"v{number}_{step}"
            before = nodes[-1].output[0]
            nodes.append(helper.make_node(operator, [before, other] if other else [before], [made], name=made))
    weights.append(weight("bias", [4096], onnx.TensorProto.FLOAT))
    ends = helper.make_tensor_value_info("x", half, [2, 4096]), helper.make_empty_tensor_value_info(f"v{count}")
    model = helper.make_model(helper.make_graph(nodes, "large", ends[:1], ends[1:], weights))
    model.opset_import[0].version = 23
    (tmp_path / "large.onnx").write_bytes(model.SerializeToString())
    report = check_operators(tmp_path / "large.onnx")
    assert sum(report.operators.values()) == 5 * count + 1
    # Each sum mixes types; what it gives has none, nor has anything behind it, until it is mended.
    assert report.problems[0].problem.startswith("mixes FLOAT and FLOAT16") and report.untyped > 0
    weights[-1].data_type = half
    model = helper.make_model(helper.make_graph(nodes, "large", ends[:1], ends[1:], weights))
    model.opset_import[0].version = 23
    (tmp_path / "large.onnx").write_bytes(model.SerializeToString())
    assert (report := check_operators(tmp_path / "large.onnx")).passed and report.untyped == 0


def weight(name: str, dims: list[int], kind: int) -> Any:
    """An initializer in a file that is not there."""
    tensor = onnx.TensorProto(name=name, dims=dims, data_type=kind, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="missing.data")
    return tensor


def test_other_opsets_are_refused(tmp_path: Path) -> None:
    report = check("y = Sin(x)", tmp_path, opset=8)
    assert "opset 8" in report.problems[0].problem and 23 in OPSETS


def test_the_table_knows_what_it_should() -> None:
    assert len(SUPPORTED) > 130 and "Det" not in SUPPORTED and "GroupNormalization" in SUPPORTED


def check(nodes: str, folder: Path, opset: int = 23) -> Any:
    text = f"""
    <ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    graph (float[2, 3, 8] x, bool[2, 3, 8] c, bool c0, float[8] w, float[3] s) => (y) {{ {nodes} }}
    """
    path = folder / "graph.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return check_operators(path)


def test_fakes_keep_the_rules_they_stand_for() -> None:
    trt, cudart, _, _ = make_believe()
    assert isinstance(trt, FakeTrt)
    _, address = cudart.cudaMalloc(100)
    assert address is not None and address % 256 == 0
    assert not cudart.inside(address + 50, 100)
    assert EnginePlan("a", "b", "c", (), {}).workspace_bytes == 0
