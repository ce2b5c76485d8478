"""Building engines: plans are data, builds are idempotent and can be interrupted, recorded engines were measured."""

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
from bundle_fakes import make_identity, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from polygraphy_fakes import runners
from tensorrt_fakes import fake_device, open_session

from celebctl_export.tensorrt_parity import make_feeds, parity_check, polygraphy_runners
from celebctl_export.tensorrt_plan import EngineSize, describe, plan_engines
from celebctl_export.to_tensorrt import Phases, build_plans, graph_bytes, unsupported_nodes
from celebctl_runtime.backends.engines import (
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
    request = EngineSize(batch, 8 * rows, 8 * columns)
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


def test_one_size_more_takes_nothing_away_from_the_dynamic_engine(bundle: Bundle) -> None:
    *_, device = fake_device()
    for size in ("1x64x32", "1x32x96", "1x128x32"):
        build(bundle, size, dynamic=True, device=device)
    records = find_records(engines_of(bundle), bundle.manifest, device.machine)
    for height, width in ((64, 32), (32, 96), (128, 32)):
        assert choose_engine(records, "vae_decoder", {"latent": (2, 4, height // 4, width // 4)}) is not None


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
    assert graph_bytes(bundle.path, plans["step.onnx"]) == bundle.file("step.onnx").read_bytes()


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
    assert len(trt.built) == 1 and not read_records(engines_of(bundle), bundle.manifest)
    records = build(bundle, "1x32x32", device=device, measure=parity_check(bundle, runners(0.0)))
    assert len(trt.built) == 4 and all(record.parity for record in records)


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
    small, large = {"latent": (1, 4, 8, 8)}, {"latent": (3, 4, 16, 8)}
    assert [choose_engine(records, "vae_decoder", shapes)[0].file for shapes in (small, large)] == [  # type: ignore[index]
        "vae_decoder-b1-32x32.plan",
        "vae_decoder-dynamic.plan",
    ]
    for shapes in ({"latent": (5, 4, 8, 8)}, {"latent": (1, 4, 8)}, {"other": (1, 4, 8, 8)}):
        assert choose_engine(records, "vae_decoder", shapes) is None
    assert not Profile("g", {"x": ((1,), (1,), (2,))}).fits({"x": (3,)})
