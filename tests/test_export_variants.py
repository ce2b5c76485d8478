"""A variant for ONNX Runtime that is wrong or cannot be made is discarded with a warning, and the export goes on."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from test_ort_optimizations import _STEP, feeds, run, write  # pyright: ignore[reportPrivateUsage]

torch: Any = pytest.importorskip("torch")

from celebctl_export.parity import TOLERANCES, ReferenceOutputs  # noqa: E402
from celebctl_runtime.progress import Progress  # noqa: E402

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

# Modules, to replace what they imported.
ort_variants: Any = import_module("celebctl_export.ort_variants")
writing: Any = import_module("celebctl_export.write")
Change = Callable[[ir.Model], Any]


@pytest.fixture
def answers(tmp_path: Path) -> ReferenceOutputs:
    """A step graph in a folder of its own, and what it gives."""
    path = write(tmp_path / "step.onnx", _STEP)
    return ReferenceOutputs("step", [(values, run(path, values)) for values in (feeds(), feeds(1, 2, 4, 8))])


def measured(folder: Path, expected: ReferenceOutputs) -> tuple[Any, list[Any]]:
    return writing._write_variant(folder, expected, TOLERANCES["fp32"])


def also(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the variant after it was made."""
    genuine = ort_variants.normalize_groups

    def make(model: ir.Model) -> Any:
        made = genuine(model)
        change(model)
        return made

    monkeypatch.setattr(ort_variants, "normalize_groups", make)


def another_function(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "Tanh"


def another_shape(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Conv").attributes["pads"] = ir.AttrInt64s("pads", [0] * 4)


def another_operator(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "NoSuchThing"


def fails(model: ir.Model) -> None:
    raise RuntimeError("a graph tool that gives up")


def test_a_correct_variant_is_kept_and_measured(
    tmp_path: Path, answers: ReferenceOutputs, caplog: pytest.LogCaptureFixture
) -> None:
    variant, rows = measured(tmp_path, answers)
    assert (tmp_path / variant.file).is_file() and (tmp_path / variant.reader).is_file() and not caplog.messages
    assert len(rows) == len(answers.cases) and all(row.passed for row in rows)


@pytest.mark.parametrize(
    ("change", "word"),
    [(another_function, "differs"), (another_shape, ""), (another_operator, "NoSuchThing"), (fails, "gives up")],
)
def test_a_wrong_variant_is_discarded_and_the_graph_stays(
    tmp_path: Path,
    answers: ReferenceOutputs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Change,
    word: str,
) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    also(change, monkeypatch)
    assert measured(tmp_path, answers) == (None, [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (message,) = caplog.messages
    assert "step" in message and word in message


def test_a_long_path_does_not_hide_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    path = write(folder / "step.onnx", _STEP)
    expected = ReferenceOutputs("step", [(feeds(), run(path, feeds()))])
    also(another_operator, monkeypatch)
    assert measured(folder, expected) == (None, [])
    assert "NoSuchThing" in caplog.messages[0] and "deep" not in caplog.messages[0]


def test_files_begun_before_a_failure_are_gone(
    tmp_path: Path, answers: ReferenceOutputs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writing the second file fails when the first is complete."""
    before, saved, genuine = sorted(tmp_path.iterdir()), list[Path](), cast(Any, ir).save

    def save(model: ir.Model, path: Path) -> None:
        if saved:
            raise OSError("no room left")
        genuine(model, path)
        saved.append(path)

    monkeypatch.setattr(ort_variants.ir, "save", save)
    assert measured(tmp_path, answers) == (None, [])
    assert saved and "no room left" in caplog.messages[0] and sorted(tmp_path.iterdir()) == before


def test_an_export_goes_on_without_the_variant(
    tiny_parts: DiffusionParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one graph, to save time: it is exported and measured, without a variant."""
    makers = writing.graph_makers

    def only_decoder(parts: DiffusionParts) -> list[Any]:
        return [make for make in makers(parts) if make(torch.float32).name == "vae_decoder"]

    also(another_function, monkeypatch)
    monkeypatch.setattr(writing, "graph_makers", only_decoder)
    seen: list[Progress] = []
    ends, variants, rows = writing.write_graphs(tiny_parts, tmp_path, 2, "fp32", seen.append)
    assert [progress.stage for progress in seen] == ["exporting vae_decoder", "measuring vae_decoder"]
    assert [end.name for end in ends] == ["vae_decoder"] and variants == []
    assert {row.graph for row in rows} == {"vae_decoder"} and all(row.passed for row in rows)
    assert any("vae_decoder" in message for message in caplog.messages)
    assert not list(tmp_path.glob("*.ort.onnx")) and (tmp_path / "vae_decoder.onnx").is_file()
    assert np.isfinite([row.max_abs_error for row in rows]).all()
