"""Building engines: plans are data, builds are idempotent and can be interrupted, recorded engines were measured."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from bundle_fakes import make_identity, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from polygraphy_fakes import runners
from tensorrt_fakes import allow_onnx_runtime, attention_nodes, fake_device, open_session

from celebctl_export import to_tensorrt
from celebctl_export.tensorrt_graph import MAX_ELEMENTS, graph_bytes, largest_tensor, tensors
from celebctl_export.tensorrt_parity import make_feeds, parity_check, polygraphy_runners
from celebctl_export.tensorrt_plan import EnginePlan, EngineSize, describe, plan_engines
from celebctl_export.to_tensorrt import Phases, build_engine, build_plans, unsupported_nodes
from celebctl_runtime.backends.engines import (
    EngineRecord,
    Machine,
    Profile,
    choose_engine,
    engine_key,
    find_records,
    onnx_sha256,
    read_records,
)
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError, SetupError, UsageError
from celebctl_runtime.progress import Progress

MACHINE = Machine("11.4.0.106", "NVIDIA Fake 1000", "9.0")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@functools.cache
def toy_manifest() -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return write_bundle(Path(folder) / "bundle").manifest


def build(bundle: Bundle, *sizes: str, **options: Any) -> list[Any]:
    requests = [EngineSize.parse(size) for size in sizes]
    plans = plan_engines(bundle.manifest, requests, dynamic=options.pop("dynamic", False))
    if "device" not in options:
        options["device"] = fake_device()[-1]
    return build_plans(bundle, plans, engines_of(bundle), **options)


def engines_of(bundle: Bundle) -> Path:
    return bundle.path.with_name("engines")


def test_the_plan_names_every_engine(bundle: Bundle) -> None:
    plans = {plan.file: plan for plan in plan_engines(bundle.manifest, [EngineSize(2, 32, 48)])}
    assert set(plans) == {
        "text_encoder-dynamic.plan",
        "step-b2-32x48.plan",
        "step-dynamic.plan",
        "step_nocfg-b2-32x48.plan",
        "step_nocfg-dynamic.plan",
        "vae_decoder-b1-32x48.plan",
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
    assert dynamic.profiles[0].shapes["noise"] == ((1, 4, 4, 4), (1, 4, 8, 8), (1, 4, 10, 10))
    text = plans["text_encoder-dynamic.plan"]
    table = bundle.manifest.token_tables[0]
    assert text.inputs_from_data == {"token_table": "token_table.bin"}
    assert text.profiles[0].shapes["input_ids"] == ((1, 77), (2, 77), (8, 77))
    assert text.profiles[0].shapes["token_table"] == ((table.rows, table.width),) * 3


def test_the_dynamic_engine_takes_prompts_of_three_windows(tmp_path: Path) -> None:
    plans = {plan.file: plan for plan in plan_engines(write_bundle(tmp_path / "long", long_prompts=True).manifest)}
    contexts = {name: plans[f"step-{name}.plan"].profiles[0].shapes["context"] for name in ("dynamic", "b1-32x32")}
    assert contexts == {
        "dynamic": ((2, 1, 77, 8), (2, 1, 77, 8), (2, 1, 231, 8)),
        "b1-32x32": ((2, 1, 77, 8),) * 3,
    }


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
    plans = plan_engines(toy_manifest(), [EngineSize(batch, 8 * rows, 8 * columns)])
    for plan in plans:
        for profile in plan.profiles:
            for least, best, most in profile.shapes.values():
                assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
    machines = [EngineRecord(plan.file, plan.onnx_sha256, plan.profiles, MACHINE) for plan in plans]
    latent = (4, 2 * rows, 2 * columns)
    step = {"state": (2, batch, *latent), "step": (1,), "noise": (batch, *latent), "aux": (1000, 3)}
    step |= {"context": (2, batch, 77, 8), "table": (1000, 2, 4)}
    assert choose_engine(machines, "step", step) is not None
    assert choose_engine(machines, "vae_decoder", {"latent": (1, *latent)}) is not None


@pytest.mark.parametrize(
    ("native", "multiple", "largest"), [(512, 64, 640), (768, 64, 960), (1024, 32, 1312), (1536, 64, 1536)]
)
def test_the_dynamic_engines_end_a_little_above_the_native_size(native: int, multiple: int, largest: int) -> None:
    """1.3 times the native side and no more than 1360 pixels: 256 channels of 1312 x 1312 are 0.2 of the limit."""
    size = replace(toy_manifest().size, native=(native, native), multiple=multiple)
    for dtype, batch in (("fp16", 4), ("fp32", 1)):
        plans = {plan.file: plan for plan in plan_engines(replace(toy_manifest(), size=size, dtype=dtype))}
        side = largest // size.vae_factor
        assert plans["step-dynamic.plan"].profiles[0].shapes["noise"][2] == (batch, 4, side, side)
        assert plans["vae_decoder-dynamic.plan"].profiles[0].shapes["latent"][2] == (1, 4, side, side)


@pytest.mark.parametrize(
    "text", ["512", "512x512", "0x512x512", "16x32x32", "1x33x32", "1x32x0", "1x32x8192", "axbxc", "-1x32x32"]
)
def test_invalid_sizes_are_refused(bundle: Bundle, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_engines(bundle.manifest, [EngineSize.parse(text)])
    assert caught.value.hint


def test_the_whole_plan_is_one_document(bundle: Bundle) -> None:
    plans = plan_engines(bundle.manifest, [EngineSize(1, 32, 32)])
    document = json.loads(json.dumps(describe(bundle.manifest, plans, Path("engines"), MACHINE)))
    assert document["strongly_typed"] is True and document["precision"] == "float32"
    assert document["machine"] == {"tensorrt": "11.4.0.106", "gpu": MACHINE.gpu, "compute_capability": "9.0"}
    step = next(engine for engine in document["engines"] if engine["onnx"] == "step.onnx")
    key = engine_key(step["onnx_sha256"], plans[[plan.onnx for plan in plans].index("step.onnx")].profiles, MACHINE)
    assert Path(step["path"]) == Path("engines", key, "step-b1-32x32.plan") and step["built"] is False
    unknown = describe(bundle.manifest, plans, Path("engines"), None)
    assert unknown["machine"] is None and Path(unknown["engines"][0]["path"]).parent == Path("engines", "KEY")


def test_the_key_changes_with_all_that_an_engine_is_bound_to(bundle: Bundle, tmp_path: Path) -> None:
    profiles, graph = plan_engines(bundle.manifest)[0].profiles, bundle.manifest.graphs["text_encoder"]
    base = engine_key(onnx_sha256(bundle.manifest, graph), profiles, MACHINE)
    for change in ({"tensorrt": "10.16.1.11"}, {"gpu": "other"}, {"compute_capability": "8.9"}):
        assert engine_key(onnx_sha256(bundle.manifest, graph), profiles, replace(MACHINE, **change)) != base
    assert engine_key(onnx_sha256(bundle.manifest, graph), profiles[:0], MACHINE) != base
    bundle.add(make_identity("alice"))
    assert engine_key(onnx_sha256(bundle.manifest, graph), profiles, MACHINE) == base
    other = write_bundle(tmp_path / "other", seed=99).manifest
    hashes = [{onnx_sha256(one, graph) for graph in one.graphs.values()} for one in (bundle.manifest, other)]
    assert hashes[0] != hashes[1]


def test_engines_are_built_once(bundle: Bundle) -> None:
    trt, _, device = fake_device()
    first = build(bundle, "1x32x32", device=device)
    assert len(trt.built) == 4 and find_records(engines_of(bundle), bundle.manifest, device.machine)
    assert build(bundle, "1x32x32", device=device) == first and len(trt.built) == 4
    build(bundle, "1x32x32", "1x16x16", device=device)
    assert len(trt.built) == 7  # the text encoder serves both
    records = read_records(engines_of(bundle), bundle.manifest)
    assert {record.file for record in first} <= {record.file for record in records}
    (plan,) = engines_of(bundle).glob("*/step-b1-32x32.plan")
    plan.unlink()
    build(bundle, "1x32x32", device=device)
    assert len(trt.built) == 8


def test_the_folder_is_its_owners_alone(bundle: Bundle) -> None:
    engines_of(bundle).mkdir(mode=0o755)
    build(bundle, "1x32x32")
    assert engines_of(bundle).stat().st_mode & 0o777 == 0o700


def test_the_dynamic_engine_does_not_depend_on_the_sizes(bundle: Bundle) -> None:
    trt, _, device = fake_device()
    build(bundle, "1x64x32", dynamic=True, device=device)
    assert len(trt.built) == 7
    for count, size in enumerate(("1x32x96", "4x128x32"), 1):
        build(bundle, size, dynamic=True, device=device)
        assert len(trt.built) == 7 + 3 * count
    records = find_records(engines_of(bundle), bundle.manifest, device.machine)
    for height, width in ((64, 32), (32, 96), (128, 32)):
        assert choose_engine(records, "vae_decoder", {"latent": (1, 4, height // 4, width // 4)}) is not None


def test_the_bundle_stays_what_it_was(bundle: Bundle) -> None:
    before = bundle.path.joinpath("manifest.json").read_bytes()
    build(bundle, "1x32x32")
    assert bundle.path.joinpath("manifest.json").read_bytes() == before
    Bundle.open(bundle.path, verify="full")
    assert not list(bundle.path.rglob("*.plan*")) and not list(engines_of(bundle).rglob(".*"))


def test_bundles_with_the_same_graphs_share_engines(bundle: Bundle, tmp_path: Path) -> None:
    trt, _, device = fake_device()
    records = build(bundle, "1x32x32", device=device)
    same, other = write_bundle(tmp_path / "same"), write_bundle(tmp_path / "other", seed=99)
    assert build(same, "1x32x32", device=device) == records and len(trt.built) == 4
    changed = [
        name
        for name, graph in other.manifest.graphs.items()
        if onnx_sha256(other.manifest, graph) != onnx_sha256(bundle.manifest, bundle.manifest.graphs[name])
    ]
    assert changed and len(build(other, "1x32x32", device=device)) == 4 and len(trt.built) == 4 + len(changed)
    with pytest.raises(NotFoundError, match="Fake"):
        find_records(engines_of(bundle), bundle.manifest, replace(device.machine, gpu="other"))


def test_a_damaged_bundle_is_not_built_from(bundle: Bundle) -> None:
    file = bundle.file("step.onnx")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=r"step\.onnx"):
        build(bundle, "1x32x32")
    assert not engines_of(bundle).exists()


def test_the_timing_cache_is_kept_and_one_that_does_not_fit_is_left(bundle: Bundle) -> None:
    *_, device = fake_device()
    build(bundle, "1x32x32", device=device)
    cache = engines_of(bundle) / "timing.cache"
    assert cache.read_bytes().count(b".onnx") == 4
    cache.write_bytes(b"of another GPU")
    build(bundle, "1x16x16", device=device)
    assert cache.read_bytes().count(b".onnx") == 3 and b"another GPU" not in cache.read_bytes()


def test_progress_runs_from_nothing_to_all_and_never_back(bundle: Bundle) -> None:
    seen: list[Progress] = []
    build(bundle, "1x32x32", progress=seen.append)
    done = [progress.step for progress in seen]
    assert done[0] == 0 and done[-1] == 400 and done == sorted(done) and len(done) > 32
    assert {progress.total for progress in seen} == {400}
    assert seen[-1].stage == "vae_decoder-b1-32x32.plan: measuring"


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
    trt, _, device = fake_device()

    def stop(progress: Progress) -> None:
        if progress.step > 230:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, "1x32x32", device=device, progress=stop)
    assert len(trt.built) == 2
    build(bundle, "1x32x32", device=device)
    assert len(trt.built) == 4


def test_a_graph_that_tensorrt_refuses_is_named_with_its_node(bundle: Bundle) -> None:
    trt, _, device = fake_device()
    trt.refuses = "Resize"
    with pytest.raises(InvalidInputError, match=r"vae_decoder\.onnx: Resize .*not supported") as caught:
        build(bundle, "1x32x32", device=device)
    assert caught.value.reason == "unsupported_graph"
    nodes = unsupported_nodes(device.library, bundle)
    (node,) = nodes.pop("vae_decoder.onnx")
    assert not any(nodes.values()) and node.startswith("Resize ") and node.endswith("not supported")


@pytest.mark.parametrize(
    ("message", "reason"), [("Out of memory: 12 GiB", "out_of_gpu_memory"), ("no tactic found", "tensorrt_failed")]
)
def test_a_build_that_fails_has_a_reason(bundle: Bundle, message: str, reason: str) -> None:
    trt, _, device = fake_device()
    trt.fails = message
    with pytest.raises(SetupError) as caught:
        build(bundle, "1x32x32", device=device)
    assert caught.value.reason == reason and (reason != "tensorrt_failed" or message in caught.value.problem)
    assert not list(engines_of(bundle).iterdir())


def test_the_table_becomes_an_input_and_nothing_else_changes(bundle: Bundle) -> None:
    path = bundle.file("text_encoder.onnx")
    plans = {plan.onnx: plan for plan in plan_engines(bundle.manifest, dynamic=False)}
    model = onnx.ModelProto.FromString(graph_bytes(bundle.path, plans["text_encoder.onnx"]))
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
    with pytest.raises(IntegrityError, match="no initializer"):
        graph_bytes(bundle.path, replace(plans["step.onnx"], inputs_from_data={"token_table": "token_table.bin"}))
    untouched = onnx.ModelProto.FromString(graph_bytes(bundle.path, plans["step.onnx"]))
    assert untouched == onnx.ModelProto.FromString(bundle.file("step.onnx").read_bytes())


def test_every_output_is_measured_and_written_down(bundle: Bundle) -> None:
    records = build(bundle, "1x32x32", measure=parity_check(bundle, runners(0.0)))
    rows = [(record.file, row) for record in records for row in record.parity]
    assert {row["output"] for _, row in rows} == {"context", "next_state", "next_step", "image"}
    assert all(row["max_abs_error"] == 0 and row["tensorrt_ms"] == 2.0 and row["engine"] == file for file, row in rows)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_an_engine_that_is_off_is_never_listed(bundle: Bundle, error: float) -> None:
    with pytest.raises(IntegrityError) as caught:
        build(bundle, "1x32x32", measure=parity_check(bundle, runners(error)))
    assert caught.value.reason == "engine_parity" and caught.value.values["engine"] == "step-b1-32x32.plan"
    assert [path.name for path in engines_of(bundle).rglob("*.plan")] == []


def test_an_engine_that_could_not_be_measured_is_not_built_again(bundle: Bundle) -> None:
    trt, _, device = fake_device()

    def fails(*_: Any) -> Any:
        raise SetupError("libcudart is missing")

    with pytest.raises(SetupError, match="libcudart"):
        build(bundle, "1x32x32", device=device, measure=fails)
    assert len(trt.built) == 4 and not read_records(engines_of(bundle), bundle.manifest)
    records = build(bundle, "1x32x32", device=device, measure=parity_check(bundle, runners(0.0)))
    assert len(trt.built) == 4 and all(record.parity for record in records)


def test_an_engine_that_fails_does_not_keep_the_others_from_being_built(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    trt, _, device = fake_device()
    trt.fails, trt.fails_for = "no tactic found", "step.onnx"
    with pytest.raises(SetupError, match=r"step-b1-32x32\.plan: no tactic found"):
        build(bundle, "1x32x32", device=device, dynamic=True)
    assert {record.file for record in read_records(engines_of(bundle), bundle.manifest)} == {
        "step_nocfg-b1-32x32.plan", "step_nocfg-dynamic.plan", "text_encoder-dynamic.plan",
        "vae_decoder-b1-32x32.plan", "vae_decoder-dynamic.plan",
    }  # fmt: skip
    assert [message.partition(":")[0] for message in caplog.messages] == ["step-b1-32x32.plan", "step-dynamic.plan"]
    trt.fails = ""
    assert len(build(bundle, "1x32x32", device=device, dynamic=True)) == 7 and len(trt.built) == 7


def test_the_cpu_computes_what_engines_are_compared_with_once(bundle: Bundle) -> None:
    """A native and a dynamic engine are measured on the same inputs, and one run on the CPU can take minutes."""
    runs: list[str] = []

    def counting(path: Path, content: bytes, profile: int) -> tuple[Any, Any]:
        engine, reference = runners(0.0)(path, content, profile)
        infer = reference.enter_result.infer

        def count(feeds: Any) -> Any:
            runs.append(path.name)
            return infer(feeds)

        reference.enter_result.infer = count
        return engine, reference

    records = build(bundle, "1x32x32", dynamic=True, measure=parity_check(bundle, counting))
    assert len(records) == 7 and all(record.parity for record in records)
    assert sorted(runs) == ["step.onnx", "step_nocfg.onnx", "text_encoder.onnx", "vae_decoder.onnx"]


def test_a_fault_of_polygraphy_is_an_error_of_ours(bundle: Bundle) -> None:
    class Broken:
        def __enter__(self) -> Any:
            raise OSError("libcudart.so: cannot open shared object file")

        def __exit__(self, *_: object) -> None: ...

    check = parity_check(bundle, lambda *_: (Broken(), Broken()))  # type: ignore[arg-type,return-value]
    with pytest.raises(SetupError, match="libcudart") as caught:
        build(bundle, "1x32x32", measure=check)
    assert caught.value.reason == "engine_not_measured" and caught.value.values["engine"] == "step-b1-32x32.plan"
    assert len(list(engines_of(bundle).rglob("*.plan"))) == 4, "minutes of building are not lost"


def exported(bundle: Bundle, graph: str) -> EnginePlan:
    return next(plan for plan in plan_engines(bundle.manifest, dynamic=False) if plan.profiles[0].graph == graph)


def test_attention_is_decomposable_for_tensorrt_alone(exported_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 text encoders and the autoencoder's wide head have no fused kernel; ONNX Runtime refuses it."""
    bundle = Bundle.open(exported_copy)
    plan = exported(bundle, "text_encoder")
    stored = onnx.ModelProto.FromString(bundle.file(plan.onnx).read_bytes())
    given = onnx.ModelProto.FromString(graph_bytes(bundle.path, plan))
    marked = [[one.name for one in node.attribute] for node in attention_nodes(given)]
    assert marked and all(names.count("TRT_decomposable") == 1 for names in marked)
    assert not [one for node in attention_nodes(stored) for one in node.attribute if one.name.startswith("TRT")]
    assert not [one for node in attention_nodes(stored) for one in node.attribute if one.name == "softmax_precision"]
    with pytest.raises(Exception, match="TRT_decomposable"):
        open_session(given, bundle.path)

    def as_stored(folder: Path, plan: EnginePlan) -> bytes:
        model = onnx.ModelProto.FromString(graph_bytes(folder, plan))
        for node in attention_nodes(model):
            assert allow_onnx_runtime(node)
        return model.SerializeToString()

    trt, _, device = fake_device()
    monkeypatch.setattr(to_tensorrt, "graph_bytes", as_stored)
    for graph in ("text_encoder", "vae_decoder", "step"):
        with pytest.raises(SetupError, match="could not find any implementation"):
            build_plans(bundle, [exported(bundle, graph)], engines_of(bundle), device=device)
    monkeypatch.undo()
    assert trt.built == []
    build_plans(bundle, [exported(bundle, "text_encoder")], engines_of(bundle), device=device)
    assert len(trt.built) == 1


@pytest.mark.parametrize(("version", "known"), [("10.13.3.9", False), ("10.16.1.11", True), ("11.4.0.106", True)])
def test_attention_is_known_from_10_14_on(exported_copy: Path, version: str, known: bool) -> None:
    bundle = Bundle.open(exported_copy)
    _, _, device = fake_device(version=version)
    nodes = unsupported_nodes(device.library, bundle)
    assert any(nodes.values()) is not known
    if not known:
        assert nodes["text_encoder.onnx"][0].startswith("Attention ")


def attention_model(dtype: int, head: int, **attributes: Any) -> onnx.ModelProto:
    """y = Attention(x, x, x), for x (batch, 1, length, head)."""
    shape: list[Any] = ["batch", 1, "length", head]
    x, y = (onnx.helper.make_tensor_value_info(name, dtype, shape) for name in "xy")
    node = onnx.helper.make_node("Attention", ["x", "x", "x"], ["y"], name="middle", **attributes)
    graph = onnx.helper.make_graph([node], "attention", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)


def attention_plan(folder: Path, model: onnx.ModelProto, length: int) -> EnginePlan:
    folder.mkdir(exist_ok=True)
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    head = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    shape = (1, 1, length, head)
    return EnginePlan("x.plan", "x.onnx", "", (Profile("x", {"x": (shape, shape, shape)}),), {})


def test_softmax_precision_is_refused_with_the_node(tmp_path: Path) -> None:
    plan = attention_plan(tmp_path, attention_model(onnx.TensorProto.FLOAT, 64, softmax_precision=1), 77)
    _, _, device = fake_device()
    with pytest.raises(InvalidInputError, match="'middle': setting softmax_precision") as caught:
        build_engine(device.library, tmp_path, plan, tmp_path / "timing.cache", Mock())
    assert caught.value.reason == "unsupported_graph"


@pytest.mark.parametrize(
    ("dtype", "head", "length", "elements"),
    [
        (onnx.TensorProto.FLOAT, 512, 16384, 16384**2),  # SDXL's autoencoder at 1024 pixels: weights of all pairs
        (onnx.TensorProto.FLOAT16, 512, 65536, 65536**2),  # and at 2048, in half precision: the head is too wide
        (onnx.TensorProto.FLOAT16, 160, 65536, 65536 * 160),  # a fused kernel stores none
    ],
)
def test_attention_weights_count_where_no_kernel_is_fused(
    tmp_path: Path, dtype: int, head: int, length: int, elements: int
) -> None:
    plan = attention_plan(tmp_path, attention_model(dtype, head), length)
    assert largest_tensor(tmp_path, plan, plan.profiles[0]).elements == elements


def test_an_engine_with_too_large_a_tensor_is_refused_with_the_number(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt, _, device = fake_device()
    plan = exported(bundle, "vae_decoder")
    shape = (1, 4, 8000, 8000)
    large = replace(plan, file="large.plan", profiles=(Profile("vae_decoder", {"latent": (shape, shape, shape)}),))
    (profile,) = large.profiles
    elements = 3 * (4 * 8000) ** 2
    assert largest_tensor(bundle.path, large, profile).shape == (1, 3, 32000, 32000) and elements > MAX_ELEMENTS
    with pytest.raises(UsageError, match=f"{elements:,}") as caught:
        build_plans(bundle, [large, plan], engines_of(bundle), device=device)
    values = caught.value.values
    assert caught.value.reason == "engine_too_large" and (values["engine"], values["elements"]) == (
        "large.plan",
        elements,
    )
    assert [Path(path).name for path in trt.built] == ["vae_decoder.onnx"], "the other one is built"
    monkeypatch.setattr(to_tensorrt, "check_volume", Mock())
    with pytest.raises(SetupError, match="tensor volume exceeds"):
        build_plans(bundle, [large], engines_of(bundle), device=device)


def test_every_shape_of_an_exported_graph_is_known(exported_copy: Path) -> None:
    """Shapes that depend on other shapes included; a tensor of unknown shape would count as nothing."""
    bundle = Bundle.open(exported_copy)
    for plan in plan_engines(bundle.manifest):
        for profile in plan.profiles:
            assert all(tensor.elements for tensor in tensors(bundle.path, plan, profile)), plan.file


def test_measuring_feeds_real_tables_and_ids(bundle: Bundle) -> None:
    plans = plan_engines(bundle.manifest, dynamic=False)
    feeds = {plan.onnx: make_feeds(bundle, plan.profiles[0], plan) for plan in plans}
    assert feeds["text_encoder.onnx"]["input_ids"].max() < bundle.manifest.token_tables[0].first_spare_row
    table = feeds["step.onnx"]["table"]
    assert table.shape == (1000, 2, 4) and np.abs(table[:10]).sum(axis=(1, 2)).all() and not table[10:].any()


def test_without_polygraphy_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(SetupError) as caught:
        polygraphy_runners()
    assert "celebctl[trt]" in caught.value.hint


def test_the_closest_profile_is_chosen(bundle: Bundle) -> None:
    records = build(bundle, "1x32x32", dynamic=True)
    small, large = {"latent": (1, 4, 8, 8)}, {"latent": (1, 4, 10, 8)}
    assert [choose_engine(records, "vae_decoder", shapes)[0].file for shapes in (small, large)] == [  # type: ignore[index]
        "vae_decoder-b1-32x32.plan",
        "vae_decoder-dynamic.plan",
    ]
    for shapes in ({"latent": (2, 4, 8, 8)}, {"latent": (1, 4, 8)}, {"other": (1, 4, 8, 8)}):
        assert choose_engine(records, "vae_decoder", shapes) is None
    assert not Profile("g", {"x": ((1,), (1,), (2,))}).fits({"x": (3,)})
