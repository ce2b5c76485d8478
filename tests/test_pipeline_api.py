"""`celebctl.pipeline.Pipeline`: images from a bundle in Python, without torch; and the examples in the docstrings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from console_fakes import MODEL, toy_bundle
from PIL import Image

from celebctl.library import Library
from celebctl.pipeline import Pipeline, changed_since, find_source_bundle, make_requests, same_pixels
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.credentials import Ingredient, Signer
from celebctl_runtime.errors import NotFoundError, UsageError
from celebctl_runtime.picture import Marks, read_request
from celebctl_runtime.progress import Progress
from celebctl_runtime.request import Request


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    return Library()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle")
    bundle.add(make_identity("alice", 1))
    return bundle


@pytest.mark.usefixtures("library")
def test_images_have_consecutive_seeds_and_progress_covers_all(bundle: Bundle) -> None:
    events: list[Progress] = []
    output = Pipeline(bundle, device="cpu")("alice", seed=5, steps=3, num_images=2, progress=events.append)
    assert [request.seed for request in output.requests] == [5, 6] and len(output.images) == 2
    assert (events[-1].step, events[-1].total) == (6, 6)
    steps = [event.step for event in events]
    assert steps == sorted(steps) and not same_pixels(*output.images)
    assert output.records[0]["identities"] == {"alice": make_identity("alice", 1).digest}


@pytest.mark.usefixtures("library")
def test_a_saved_image_is_reproduced(bundle: Bundle, tmp_path: Path) -> None:
    pipe = Pipeline(bundle.path, device="cpu", threads=1)
    output = pipe("alice", seed=3, likeness={"alice": 0.5}, width=40, height=48, guidance_scale=2.0)
    (file,) = output.save(tmp_path / "a.png")
    assert read_request(file)[0].likeness == (("alice", 0.5),) and output.images[0].size == (40, 48)
    again = pipe.reproduce(file)
    assert same_pixels(again.images[0], output.images[0]) and not changed_since(again.records[0], output.records[0])
    with pytest.raises(UsageError):
        output.save(file)
    assert len(pipe("alice", num_images=2).save(tmp_path / "b.png")) == 2 and not (tmp_path / "b.png").exists()


def test_a_model_name_uses_the_bundle_of_the_library_and_adds_people(library: Library) -> None:
    with pytest.raises(NotFoundError) as error:
        Pipeline(MODEL, library=library)
    assert (error.value.reason, error.value.values["model"]) == ("no_bundle", MODEL)
    toy = toy_bundle(library)
    library.save(make_identity("bob", 2))
    assert Pipeline(MODEL, device="cpu", library=library)("bob", seed=1).requests[0].identities == ("bob",)
    assert Bundle.open(toy.path).names == ("bob",)


def test_a_given_bundle_is_not_changed(library: Library, bundle: Bundle) -> None:
    library.save(make_identity("bob", 2))
    before = (bundle.path / "manifest.json").read_bytes()
    assert Pipeline(bundle, device="cpu")("alice and bob", seed=1).requests[0].identities == ("alice",)
    assert (bundle.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "values", [{"num_images": 0}, {"seed": -1}, {"steps": 0}, {"width": 0}, {"strength": 2.0}, {"likeness": 3.0}]
)
@pytest.mark.usefixtures("library")
def test_invalid_values_are_usage_errors(bundle: Bundle, values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Pipeline(bundle, device="cpu")("alice", **values)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("library")
def test_an_image_file_tells_what_it_was_made_from(tmp_path: Path) -> None:
    titles: list[str] = []

    class Recorder:
        def sign(self, content: bytes, format: str, title: str, ingredients: Sequence[Ingredient]) -> bytes:
            titles.extend(one.title for one in ingredients)
            return content

    Image.new("RGB", (32, 32), "red").save(tmp_path / "init.png")
    pipe = Pipeline(write_bundle(tmp_path / "encoding", encodes=True), device="cpu")
    output = pipe("beach", init_image=tmp_path / "init.png", steps=2)
    output.save(tmp_path / "a.png", marks=Marks(None, cast("Signer", Recorder())))
    assert titles == ["init.png"]


def test_an_init_image_has_one_digest_for_equal_pixels() -> None:
    image = Image.new("RGB", (8, 8), "red")
    (first,), images = make_requests(Request("a", seed=1), 1, image)
    (second,), _ = make_requests(Request("a", seed=1), 1, image.copy(), 0.3)
    assert first.source == second.source == images[0].digest and (first.strength, second.strength) == (0.6, 0.3)
    assert np.asarray(images[0].image).shape == (8, 8, 3)


def test_without_a_bundle_there_is_no_source(library: Library) -> None:
    with pytest.raises(NotFoundError) as error:
        find_source_bundle(library, {"model": MODEL, "bundle": "?"})
    assert error.value.reason == "no_bundle"
    toy = toy_bundle(library)
    assert find_source_bundle(library, {"model": MODEL, "bundle": "?"}).path == toy.path


def test_the_pipeline_needs_no_torch(library: Library, bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from celebctl.pipeline import Pipeline\n"
        "assert len(Pipeline(sys.argv[1], device='cpu')('alice', seed=1, steps=2).images) == 1"
    )
    words = [sys.executable, "-c", code, str(bundle.path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("library")
def test_prompts_have_weights_wildcards_and_an_explanation(bundle: Bundle, library: Library, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "pose.txt").write_text("sitting")
    pipe, prompt = Pipeline(bundle, device="cpu", threads=1), "(alice:1.3) __pose__ {x|y}"
    output = pipe(prompt, seed=3, num_images=8, wildcards=tmp_path / "lists")
    assert {request.prompt for request in output.requests} == {f"(alice:1.3) sitting {one}" for one in "xy"}
    assert {(request.template, request.syntax) for request in output.requests} == {(prompt, "weighted")}
    (file,) = pipe(prompt, seed=3, wildcards=str(tmp_path / "lists")).save(tmp_path / "a.png")
    assert same_pixels(pipe.reproduce(file).images[0], output.images[0])
    explained = pipe.explain(prompt, seed=3, wildcards=tmp_path / "lists")
    assert explained.request == output.requests[0] and len(explained.choices) == 2
    plain = pipe(prompt, seed=3, plain_prompt=True)
    assert plain.requests[0].prompt == prompt and not same_pixels(plain.images[0], output.images[0])
    with pytest.raises(NotFoundError) as caught:
        pipe.explain("__pose__")
    assert caught.value.values["folder"] == library.root / "wildcards"
