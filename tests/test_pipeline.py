"""Generation: determinism, batches, people, errors before work, and bundles that change meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray

from celebctl_runtime.backends.base import Conditioning, Encodings
from celebctl_runtime.backends.cpu_count import physical_core_count
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.bundle.overrides import EmbeddingOverride
from celebctl_runtime.errors import BusyError, IntegrityError, NotFoundError, SetupError, UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.progress import Progress
from celebctl_runtime.request import SAMPLERS, Request, batch
from celebctl_runtime.sampling.samplers import StepTable


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle", spare_rows=16)
    bundle.add(make_identity("alice", 1))
    bundle.add(make_identity("bob", 2))
    return bundle


@pytest.fixture
def backend(bundle: Bundle) -> OrtBackend:
    return OrtBackend(bundle, "cpu", threads=1)


class BatchingBackend(OrtBackend):
    """The same engine with a batch limit of 3."""

    @property
    def batch_limit(self) -> int:
        return 3


def pixels(bundle: Bundle, backend: OrtBackend, request: Request | list[Request]) -> list[NDArray[Any]]:
    return [np.asarray(picture.image) for picture in generate(bundle, backend, request)]


def test_the_same_request_gives_the_same_pixels(bundle: Bundle, backend: OrtBackend) -> None:
    request = Request("alice and bob", seed=3, sampler="euler_a")
    first, again = generate(bundle, backend, request)[0], generate(bundle, OrtBackend(bundle, "cpu", 1), request)[0]
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.record == again.record and first.request == again.request
    assert first.image.size == (32, 32) and first.image.mode == "RGB"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("engine", [OrtBackend, BatchingBackend])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_image_k_of_a_batch_equals_the_single_image(
    bundle: Bundle, sampler: str, engine: type[OrtBackend], guidance: float
) -> None:
    request = Request("alice", seed=10, sampler=sampler, guidance=guidance)
    batched = pixels(bundle, engine(bundle, "cpu", 1), list(batch(request, 5)))
    for k in range(5):
        single = pixels(bundle, engine(bundle, "cpu", 1), replace(request, seed=10 + k))[0]
        assert np.array_equal(single, batched[k])


def test_a_mixed_list_comes_back_in_order(bundle: Bundle) -> None:
    wanted = [
        Request("alice", seed=1),
        Request("bob", seed=2),
        Request("alice", seed=1, width=48),
        Request("alice", seed=1, steps=3),
        Request("alice", seed=1),
    ]
    batched = generate(bundle, BatchingBackend(bundle, "cpu", 1), wanted)
    assert [picture.request.seed for picture in batched] == [1, 2, 1, 1, 1]
    assert batched[2].image.size == (48, 32)
    for request, picture in zip(wanted, batched, strict=True):
        assert np.array_equal(np.asarray(picture.image), pixels(bundle, OrtBackend(bundle, "cpu", 1), request)[0])


def test_every_field_of_a_request_changes_the_image(bundle: Bundle, backend: OrtBackend) -> None:
    base = Request("a photo of alice", seed=1)
    changes: list[dict[str, Any]] = [
        {"prompt": "a photo of bob"},
        {"prompt": "alice of photo a"},
        {"prompt": "a photo of \\alice"},
        {"negative": "bob"},
        {"seed": 2},
        {"steps": 6},
        {"guidance": 3.0},
        {"guidance": 1.0},
        {"sampler": "euler_a"},
    ]
    images = [pixels(bundle, backend, replace(base, **change))[0] for change in [{}, *changes]]
    for i, image in enumerate(images):
        assert not any(np.array_equal(image, other) for other in images[:i]), (i, changes)


def test_the_resolved_request_reproduces_the_image(bundle: Bundle, backend: OrtBackend) -> None:
    picture = generate(bundle, backend, Request("Bob and <alice> and bob"))[0]
    assert picture.request.identities == ("bob", "alice")
    assert (picture.request.steps, picture.request.guidance, picture.request.sampler) == (5, 2.5, "ddim")
    assert picture.record["identities"]["bob"] == make_identity("bob", 2).digest
    again = generate(bundle, backend, picture.request)[0]
    assert again.request == picture.request and np.array_equal(np.asarray(again.image), np.asarray(picture.image))


def test_a_recipe_is_unchanged_by_a_new_person_named_like_a_plain_word(bundle: Bundle, backend: OrtBackend) -> None:
    before = generate(bundle, backend, Request("alice with a rose"))[0]
    bundle.add(make_identity("rose", 7))
    recipe = generate(bundle, backend, before.request)[0]
    fresh = generate(bundle, backend, Request("alice with a rose"))[0]
    assert np.array_equal(np.asarray(recipe.image), np.asarray(before.image))
    assert fresh.request.identities == ("alice", "rose")


def test_dropped_text_is_in_the_record(bundle: Bundle, backend: OrtBackend) -> None:
    picture = generate(bundle, backend, Request("of " * 75 + "alice at sea"))[0]
    assert picture.record["dropped_text"] == "of of at sea" and picture.request.identities == ("alice",)
    assert generate(bundle, backend, Request("alice"))[0].record["dropped_text"] == ""


def test_progress_counts_the_steps_of_all_images(bundle: Bundle, backend: OrtBackend) -> None:
    events: list[Progress] = []
    requests = [*batch(Request("alice", steps=2), 2), Request("alice", steps=3)]
    generate(bundle, backend, requests, events.append)
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert {(event.stage, event.total) for event in events} == {("denoising", 7)}
    assert [event.metrics["images_done"] for event in events] == [0, 0, 1, 1, 2, 2, 2]
    events.clear()
    generate(bundle, BatchingBackend(bundle, "cpu", 1), requests, events.append)
    assert [event.step for event in events] == [2, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Request("<carol>"), NotFoundError),
        (Request("x", negative="<carol>"), NotFoundError),
        (Request("x", identities=("carol",)), NotFoundError),
        (Request("x", steps=100, sampler="lcm"), UsageError),
        (Request("x", width=33), UsageError),
    ],
)
def test_errors_come_before_any_image(bundle: Bundle, backend: OrtBackend, bad: Request, kind: type[Exception]) -> None:
    events: list[Progress] = []
    with pytest.raises(kind):
        generate(bundle, backend, [Request("alice"), bad], events.append)
    assert events == []


def test_no_requests_give_no_images(bundle: Bundle, backend: OrtBackend) -> None:
    assert generate(bundle, backend, []) == []


def test_half_precision_bundles_draw_too(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "half", dtype="float16")
    bundle.add(make_identity("alice"))
    assert generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice"))[0].image.size == (32, 32)


def test_a_running_backend_sees_people_added_since(bundle: Bundle, backend: OrtBackend) -> None:
    generate(bundle, backend, Request("alice"))
    elsewhere = Bundle.open(bundle.path)
    elsewhere.add(make_identity("carol", 5))
    elsewhere.replace(make_identity("alice", 6))
    for name in ("carol", "alice"):
        running = pixels(bundle, backend, Request(name))[0]
        assert np.array_equal(running, pixels(bundle, OrtBackend(bundle, "cpu", 1), Request(name))[0])
    elsewhere.remove("carol")
    with pytest.raises(NotFoundError) as caught:
        generate(bundle, backend, Request("<carol>"))
    assert caught.value.values["name"] == "carol"


def test_a_change_while_a_prompt_is_encoded_is_noticed(bundle: Bundle) -> None:
    """The people in a picture are those of one moment, even when rows change between reading and encoding."""
    elsewhere = Bundle.open(bundle.path)

    class Interrupted(OrtBackend):
        changes = 1

        def encode(self, ids: NDArray[np.int64], overrides: Sequence[EmbeddingOverride] = ()) -> Encodings:
            if self.changes:
                self.changes -= 1
                elsewhere.replace(make_identity("alice", 20 + self.changes))
            return super().encode(ids, overrides)

    picture = generate(bundle, Interrupted(bundle, "cpu", 1), Request("alice"))[0]
    assert picture.record["identities"]["alice"] == make_identity("alice", 20).digest
    assert np.array_equal(np.asarray(picture.image), pixels(bundle, OrtBackend(bundle, "cpu", 1), Request("alice"))[0])
    busy = Interrupted(bundle, "cpu", 1)
    busy.changes = 100
    with pytest.raises(BusyError):
        generate(bundle, busy, Request("alice"))


def test_readers_never_see_a_partial_change(bundle: Bundle) -> None:
    """While alice is replaced repeatedly, every image shows the identity that its record names."""
    seeds = {make_identity("alice", seed).digest: seed for seed in (1, 30)}
    expected: dict[str, NDArray[Any]] = {}
    for digest, seed in seeds.items():
        bundle.replace(make_identity("alice", seed))
        expected[digest] = pixels(bundle, OrtBackend(bundle, "cpu", 1), Request("alice", steps=1))[0]
    stop, drawn = threading.Event(), 0

    def keep_replacing() -> None:
        elsewhere, turn = Bundle.open(bundle.path), 0
        while not stop.wait(0.01):
            elsewhere.replace(make_identity("alice", (1, 30)[turn % 2]))
            turn += 1

    writer = threading.Thread(target=keep_replacing)
    writer.start()
    backend = OrtBackend(bundle, "cpu", 1)
    try:
        for _ in range(200):
            try:
                picture = generate(bundle, backend, Request("alice", steps=1))[0]
            except BusyError:  # on a busy machine the bundle may change faster than it is read
                continue
            assert np.array_equal(np.asarray(picture.image), expected[picture.record["identities"]["alice"]])
            drawn += 1
            if drawn == 8:
                break
    finally:
        stop.set()
        writer.join()
    assert drawn == 8


def test_a_bundle_exported_anew_is_picked_up(bundle: Bundle, backend: OrtBackend, tmp_path: Path) -> None:
    old = pixels(bundle, backend, Request("an an"))[0]
    other = write_bundle(tmp_path / "other", seed=99)
    bundle.path.rename(tmp_path / "away")
    other.path.rename(bundle.path)
    new = pixels(bundle, backend, Request("an an"))[0]
    assert not np.array_equal(old, new)
    assert np.array_equal(new, pixels(bundle, OrtBackend(bundle, "cpu", 1), Request("an an"))[0])


def test_a_graph_that_cannot_be_loaded_is_named(bundle: Bundle, backend: OrtBackend) -> None:
    path = bundle.file("vae_decoder.onnx")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IntegrityError, match=r"vae_decoder\.onnx"):
        generate(bundle, backend, Request("alice"))


def test_shapes_are_checked(backend: OrtBackend) -> None:
    with pytest.raises(IntegrityError, match="input_ids"):
        backend.encode(np.zeros((1, 76), np.int64))
    with pytest.raises(IntegrityError, match="latent"):
        backend.decode(np.zeros((1, 3, 8, 8), np.float32))
    zeros = np.zeros((2, 1, 4, 8, 8), np.float32)
    steps = StepTable(np.zeros((1, 2, 4), np.float32), np.zeros((1, 3), np.float32), 1.0, False)
    with pytest.raises(IntegrityError, match="context"):
        backend.step(zeros, 0, zeros[0], Conditioning(np.zeros((2, 1, 77, 9), np.float32)), steps)


def test_a_graph_the_bundle_lacks_is_named(bundle: Bundle, backend: OrtBackend) -> None:
    graphs = {name: facts for name, facts in bundle.manifest.graphs.items() if name != "step_nocfg"}
    Bundle.seal(bundle.path, replace(bundle.manifest, graphs=graphs))
    with pytest.raises(IntegrityError, match="step_nocfg"):
        generate(bundle, backend, Request("alice", guidance=1.0))


def test_devices(bundle: Bundle) -> None:
    import onnxruntime

    engine: Any = onnxruntime
    with pytest.raises(UsageError, match="tpu"):
        OrtBackend(bundle, "tpu")
    if "CUDAExecutionProvider" not in engine.get_available_providers():
        with pytest.raises(SetupError) as caught:
            OrtBackend(bundle, "cuda")
        assert caught.value.reason == "ort_without_cuda"
        assert OrtBackend(bundle).describe()["device"] == "cpu"


def test_a_silent_fall_back_to_the_cpu_is_an_error_when_cuda_was_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Session:
        def __init__(self, path: str, options: object, providers: list[str], enable_fallback: int) -> None:
            self._session = real(path, options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    real: Any = onnxruntime.InferenceSession
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(SetupError, match="fell back"):
        generate(bundle, OrtBackend(bundle, "cuda"), Request("alice"))
    automatic = OrtBackend(bundle, "auto")
    assert automatic.batch_limit == 1 and automatic.describe()["device"] == "cpu"


def test_without_onnxruntime_the_hint_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SetupError) as caught:
        OrtBackend(bundle)
    assert "celebctl[cpu]" in caught.value.hint


def test_core_counts_are_plausible() -> None:
    import os

    assert 1 <= physical_core_count() <= (os.cpu_count() or 1)
