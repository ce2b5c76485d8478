"""OpenVINO: the same pictures as ONNX Runtime, from the same files; people, shapes, precision, compiled graphs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray
from PIL import Image

from celebctl.bench.contenders import Workload
from celebctl.cli import main
from celebctl_runtime.backends import openvino as openvino_backend
from celebctl_runtime.backends.openvino import OpenVinoBackend, load_openvino
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.backends.select import choose_backend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import IntegrityError, SetupError, UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.request import Request
from celebctl_runtime.sampling.init_image import InitImage


@pytest.fixture
def openvino() -> Any:
    return pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """mini as it ships, exported once."""
    pytest.importorskip("openvino")
    from celebctl_export import ExportOptions, export_bundle
    from celebctl_models.checkpoints.diffusion import load_parts

    return export_bundle(load_parts("mini"), [], tmp_path_factory.mktemp("mini") / "mini", ExportOptions(spare_rows=8))


@pytest.fixture
def toy(openvino: Any, tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "toy", encodes=True)


def pixels(
    backend: OrtBackend | OpenVinoBackend, bundle: Bundle, requests: Sequence[Request], **more: Any
) -> list[NDArray[np.int16]]:
    return [np.asarray(drawn.image, np.int16) for drawn in generate(bundle, backend, requests, **more)]


def difference(bundle: Bundle, requests: Sequence[Request], backend: OpenVinoBackend, **more: Any) -> int:
    """Largest difference of the pixels, 0 to 255, between ONNX Runtime and a backend."""
    expected = pixels(OrtBackend(bundle, "cpu", 1), bundle, requests, **more)
    drawn = pixels(backend, bundle, requests, **more)
    assert all(one.std() > 1 for one in expected), "an even picture proves nothing"
    return max(int(np.abs(one - other).max()) for one, other in zip(expected, drawn, strict=True))


def test_pictures_of_mini_equal_those_of_onnx_runtime(mini: Bundle) -> None:
    """Guided, unguided, not square, with noise in every step, and from an image: within one of 255."""
    base = Request("a person on the beach", seed=3, steps=3, guidance=2.5, sampler="ddim")
    requests = [
        base,
        replace(base, guidance=1.0),
        replace(base, width=mini.manifest.size.native[1] + mini.manifest.size.multiple),
        replace(base, sampler="euler_a"),
    ]
    backend = OpenVinoBackend(mini, threads=1)
    assert difference(mini, requests, backend) <= 1
    source = InitImage(Image.effect_noise((64, 64), 60).convert("RGB"), "ab" * 32)
    from_image = replace(base, source=source.digest, strength=0.7)
    assert difference(mini, [from_image], backend, init_images=[source]) <= 1


def test_bfloat16_is_used_on_request_only(mini: Bundle) -> None:
    request = Request("a person on the beach", seed=3, steps=3)
    half = OpenVinoBackend(mini, threads=1, options={"INFERENCE_PRECISION_HINT": "bf16"})
    assert half.describe()["precision"] == "bf16" and OpenVinoBackend(mini).describe()["precision"] == "f32"
    assert difference(mini, [request], half) < 64, "bfloat16 draws the same picture, about"


def test_people_are_read_whenever_they_change(toy: Bundle) -> None:
    """Added after a run, replaced, and only for one call: nothing is compiled again, and every row counts."""
    backend, requests = OpenVinoBackend(toy, threads=1), [Request("a photo of alice", seed=1, steps=3)]
    before = pixels(backend, toy, requests)[0]
    toy.add(make_identity("alice", 1))
    assert difference(toy, requests, backend) == 0
    first = pixels(backend, toy, requests)[0]
    assert np.abs(first - before).max() > 0
    toy.remove("alice")
    toy.add(make_identity("alice", 2))
    assert difference(toy, requests, backend) == 0 and np.abs(pixels(backend, toy, requests)[0] - first).max() > 0
    carol = [make_identity("carol", 3)]
    assert difference(toy, [Request("carol", seed=1, steps=3)], backend, overrides=carol) == 0
    assert difference(toy, [replace(requests[0], likeness=0.4)], backend) == 0


def test_tables_of_half_precision_are_read(openvino: Any, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "half", dtype="float16")
    bundle.add(make_identity("alice", 1))
    assert difference(bundle, [Request("alice", seed=1, steps=3)], OpenVinoBackend(bundle, threads=1)) <= 1


def test_xl_has_two_text_encoders(openvino: Any, xl_parts: Any, tmp_path: Path) -> None:
    from celebctl_export import ExportOptions, export_bundle

    bundle = export_bundle(xl_parts, [], tmp_path / "xl", ExportOptions(spare_rows=8))
    assert difference(bundle, [Request("a photo", seed=1, steps=2)], OpenVinoBackend(bundle, threads=1)) <= 1


def test_compiled_graphs_are_kept_without_weights_and_used_again(
    openvino: Any, exported_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, cache, requests = Bundle.open(exported_copy), tmp_path / "cache", [Request("ann", seed=1, steps=2)]
    drawn = pixels(OpenVinoBackend(bundle, cache, 1), bundle, requests)[0]
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.blob")}
    folders = {path.parent for path in files}
    assert len(files) >= 3 and all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    again = pixels(OpenVinoBackend(bundle, cache, 1), bundle, requests)[0]
    assert np.array_equal(drawn, again)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.blob")} == files, "compiled again"
    wide = [replace(requests[0], width=bundle.manifest.size.native[1] * 2)]
    assert difference(bundle, wide, OpenVinoBackend(bundle, cache, 1)) <= 1
    assert len(list(cache.rglob("*.blob"))) > len(files), "another size is another graph"
    monkeypatch.setattr(openvino_backend, "_MAX_CACHED", 0)
    pixels(OpenVinoBackend(bundle, tmp_path / "large", 1), bundle, requests)
    assert not list((tmp_path / "large").rglob("*.blob")), "large networks are not kept"


def test_a_bundle_that_is_exported_again_is_read_again(toy: Bundle, tmp_path: Path) -> None:
    backend, requests = OpenVinoBackend(toy, tmp_path / "cache", 1), [Request("a photo", seed=1, steps=3)]
    pixels(backend, toy, requests)
    other = write_bundle(tmp_path / "other", seed=5)
    for path in other.path.rglob("*"):
        if path.is_file():
            path.replace(toy.path / path.relative_to(other.path))
    toy.refresh()
    assert difference(toy, requests, backend) == 0


def test_what_is_wrong_is_named(openvino: Any, toy: Bundle) -> None:
    for options, named in (({"WARP_SPEED": "9"}, "WARP_SPEED"), ({"INFERENCE_PRECISION_HINT": "int3"}, "int3")):
        with pytest.raises(UsageError, match=named):
            pixels(OpenVinoBackend(toy, options=options), toy, [Request("a photo", steps=2)])
    for name, content in (("vae_decoder", b"no graph"), ("text_encoder", (toy.path / "vae_encoder.onnx").read_bytes())):
        (toy.path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(IntegrityError) as caught:
            pixels(OpenVinoBackend(toy, threads=1), toy, [Request("a photo", steps=2)])
        assert caught.value.reason == "broken_graph"


def test_a_cache_that_cannot_be_written_or_is_damaged_does_no_harm(
    openvino: Any, exported_copy: Path, tmp_path: Path
) -> None:
    bundle, requests = Bundle.open(exported_copy), [Request("ann", seed=1, steps=2)]
    (tmp_path / "file").touch()
    drawn = pixels(OpenVinoBackend(bundle, tmp_path / "file", 1), bundle, requests)[0]
    assert np.array_equal(pixels(OpenVinoBackend(bundle, tmp_path / "cache", 1), bundle, requests)[0], drawn)
    for path in (tmp_path / "cache").rglob("*.blob"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    assert np.array_equal(pixels(OpenVinoBackend(bundle, tmp_path / "cache", 1), bundle, requests)[0], drawn)


def test_the_command_line_draws_with_openvino(
    openvino: Any, toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    monkeypatch.setenv("CELEBCTL_OPENVINO_OPTIONS", "INFERENCE_PRECISION_HINT=bf16")
    words = ["gen", "a photo", "--bundle", str(toy.path), "--device", "openvino", "--seed", "1", "--json"]
    assert main([*words, "-o", str(tmp_path / "a.png")]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert image["record"]["backend"]["engine"] == "openvino" and image["record"]["backend"]["precision"] == "bf16"


def test_without_openvino_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "toy")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SetupError, match="celebctl\\[openvino\\]") as caught:
        choose_backend(bundle, "openvino")
    assert caught.value.reason == "missing_extra"
    assert main(["gen", "a photo", "--bundle", str(bundle.path), "--device", "openvino"]) == SetupError.exit_code


def test_an_old_openvino_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__="2026.2.1-1-abc"))  # type: ignore[arg-type]
    with pytest.raises(SetupError) as caught:
        load_openvino()
    assert caught.value.reason == "openvino_too_old" and caught.value.values["oldest"] == "2026.4"


def test_bench_times_openvino_beside_the_cpu_baseline(tmp_path: Path) -> None:
    request = Request("a photo", steps=2, guidance=2.5, sampler="ddim", width=32, height=32)
    workload = Workload(write_bundle(tmp_path / "toy"), request, tmp_path, openvino_options="NUM_STREAMS=1")
    found = {one.name: one for one in workload.celebctl_contenders(["cpu", "openvino"], variants=True)}
    assert {one.device_type for one in found.values()} == {"cpu"}
    assert set(found) == {
        "celebctl cpu", "celebctl openvino", "celebctl openvino, bfloat16", "celebctl cpu, plain graphs"
    }  # fmt: skip
    half = found["celebctl openvino, bfloat16"]
    assert half.spec["openvino_options"] == {"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "bf16"}
    assert half.variables["CELEBCTL_OPENVINO_OPTIONS"].endswith("bf16")
    assert found["celebctl openvino"].spec["openvino_options"] == {"NUM_STREAMS": "1"}
