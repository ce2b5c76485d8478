"""Layouts: masks that sum to one, blending of fused steps, and images with people in their regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from celebctl_runtime.backends.base import Conditioning
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.progress import Progress
from celebctl_runtime.prompting.layout import Region, layout_text, parse_layout, region_masks
from celebctl_runtime.request import SAMPLERS, Request, batch
from celebctl_runtime.sampling.samplers import StepTable, step_table

SIDES = "left:alice,right:bob"
edges = st.floats(0, 1).map(lambda edge: round(edge, 3))
spans = st.tuples(edges, edges).filter(lambda span: abs(span[0] - span[1]) > 0.01).map(sorted)
boxes = st.tuples(spans, spans).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))
layouts = st.lists(boxes, min_size=1, max_size=4).map(
    lambda boxes: tuple(Region(f"p{number}", box) for number, box in enumerate(boxes))
)


class BatchingBackend(OrtBackend):
    """The same engine with a batch limit of 3."""

    @property
    def batch_limit(self) -> int:
        return 3


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle")
    for seed, name in enumerate(("alice", "bob"), 1):
        bundle.add(make_identity(name, seed))
    return bundle


def drawn(bundle: Bundle, *wanted: Request, engine: type[OrtBackend] = OrtBackend) -> list[NDArray[Any]]:
    return [np.asarray(picture.image) for picture in generate(bundle, engine(bundle, "cpu", 1), list(wanted))]


@settings(max_examples=60, deadline=None)
@given(layouts, st.integers(2, 24), st.integers(2, 24))
def test_masks_sum_to_one(regions: tuple[Region, ...], height: int, width: int) -> None:
    masks = region_masks(regions, height, width)
    assert masks.shape == (1 + len(regions), height, width)
    assert masks.min() >= 0 and np.allclose(masks.sum(0), 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_layout_text_round_trip(regions: tuple[Region, ...]) -> None:
    assert parse_layout(layout_text(regions)) == regions


def test_halves_leave_no_weight_for_the_whole_prompt() -> None:
    whole, left, right = region_masks(parse_layout(SIDES), 8, 16)
    assert not whole.any() and np.array_equal(left, right[:, ::-1])
    assert (left[:, :6] == 1).all() and (left[:, 10:] == 0).all()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("left:Alice, right:<bob>", SIDES),
        ("alice@0,0,0.5,1 bob@0.5,0,1,1", SIDES),
        ("top:bob;alice@0.25,0.5,1,1", "top:bob,alice@0.25,0.5,1,1"),
        ("none", ""),
        (" ", ""),
    ],
)
def test_layouts_are_parsed(text: str, canonical: str) -> None:
    assert layout_text(parse_layout(text)) == canonical


@pytest.mark.parametrize(
    "text",
    ["alice", "north:alice", "left:", "left:alice,left2:bob", "left:alice,right:alice", "alice@0,0,1", "alice@0,0,x,1",
     "alice@0.5,0,0.5,1", "alice@0,0,1.5,1", "alice@-1,0,1,1", "left:a b"],
)  # fmt: skip
def test_invalid_layouts_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_layout(text)
    assert caught.value.hint


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_blending_steps_is_blending_outputs(bundle: Bundle, sampler: str) -> None:
    """Under guidance 1 the toy network's output is tanh(x scale + words + time): blended by hand, the table gives the
    same next state as blending the states that the fused step gives for each conditioning."""
    steps, generator = step_table(sampler, bundle.schedule, 5, 1.0), np.random.default_rng(0)
    state, noise = (generator.standard_normal(shape, np.float32) for shape in ((2, 1, 4, 8, 8), (1, 4, 8, 8)))
    texts = [Conditioning(generator.standard_normal((1, 1, 77, 8), np.float32)) for _ in range(3)]
    masks = region_masks(parse_layout("alice@0,0,0.4,1,bob@0.3,0.2,1,0.9"), 8, 8)

    backend = OrtBackend(bundle, "cpu", 1)
    blended = sum(mask * backend.step(state, 2, noise, text, steps) for mask, text in zip(masks, texts, strict=True))
    scale, time, _ = steps.aux[2]
    words = [text.context[0].mean(1)[:, :4, None, None] for text in texts]
    outputs = [np.tanh(state[0] * scale + word + 0.001 * time) for word in words]
    output = sum(mask * one for mask, one in zip(masks, outputs, strict=True))
    expected = np.einsum("ij,jbchw->ibchw", steps.table[2], np.stack([*state, output, noise]))
    assert np.allclose(blended, expected, atol=1e-5)


def test_layout_none_equals_no_layout(bundle: Bundle) -> None:
    plain, none = drawn(bundle, Request("alice and bob"), Request("alice and bob", layout="none"))
    assert np.array_equal(plain, none)


def test_a_region_of_the_whole_image_equals_a_prompt_of_one_person(bundle: Bundle) -> None:
    """In alice's region both names of the prompt stand for alice."""
    everywhere = Request("alice of bob", layout="alice@0,0,1,1,bob@0,0,0.001,0.001")
    assert np.array_equal(drawn(bundle, everywhere)[0], drawn(bundle, Request("alice of alice"))[0])


def test_each_side_shows_its_person(bundle: Bundle) -> None:
    """The toy network does not mix pixels, so outside the soft border each side equals that person's own image."""
    both, alices, bobs = drawn(
        bundle, Request("alice of bob", layout=SIDES), Request("alice of alice"), Request("bob of bob")
    )
    assert np.array_equal(both[:, :8], alices[:, :8]) and np.array_equal(both[:, -8:], bobs[:, -8:])
    swapped = drawn(bundle, Request("alice of bob", layout="left:bob,right:alice"))[0]
    assert np.array_equal(swapped[:, :8], bobs[:, :8])


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("engine", [OrtBackend, BatchingBackend])
def test_image_k_of_a_batch_equals_the_single_image(
    bundle: Bundle, sampler: str, guidance: float, engine: type[OrtBackend]
) -> None:
    wanted = batch(Request("alice and bob", seed=3, sampler=sampler, guidance=guidance, layout=SIDES), 4)
    mixed = [*wanted, Request("alice and bob"), Request("bob and alice", layout="left:bob,alice@0.2,0,1,1")]
    for request, image in zip(mixed, drawn(bundle, *mixed, engine=engine), strict=True):
        assert np.array_equal(image, drawn(bundle, request)[0])


@pytest.mark.parametrize(
    ("prompt", "layout", "equivalent"),
    [
        ("alice and bob", "auto", SIDES),
        ("bob and alice, bob's friend", "Auto", "left:bob,right:alice"),
        ("alice and her dog", "auto", ""),
        ("alice, bob and carol", "auto", ""),
    ],
)
def test_automatic_layouts_follow_the_prompt(bundle: Bundle, prompt: str, layout: str, equivalent: str) -> None:
    bundle.add(make_identity("carol", 3))
    automatic, explicit = drawn(bundle, Request(prompt, layout=layout), Request(prompt, layout=equivalent))
    assert np.array_equal(automatic, explicit)


def with_default_layout(bundle: Bundle, layout: str) -> Bundle:
    """The bundle with another default layout."""
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    document["defaults"]["layout"] = layout
    path.write_text(json.dumps(document))
    return Bundle.open(bundle.path, verify="none")


def test_a_bundle_may_have_a_default_layout(bundle: Bundle) -> None:
    plain, laid_out = drawn(bundle, Request("alice and bob"), Request("alice and bob", layout=SIDES))
    changed = with_default_layout(bundle, "auto")
    engine = OrtBackend(changed, "cpu", 1)
    wanted = [Request("alice and bob"), Request("alice and bob", layout="none"), Request("alice")]
    made = generate(changed, engine, wanted)
    assert [picture.request.layout for picture in made] == [SIDES, "none", "none"]
    assert np.array_equal(np.asarray(made[0].image), laid_out) and np.array_equal(np.asarray(made[1].image), plain)
    recipes = [Request.from_json(picture.request.to_json()) for picture in made]
    for recipe, picture in zip(recipes, made, strict=True):  # independent of the bundle's present default
        assert np.array_equal(drawn(with_default_layout(bundle, "none"), recipe)[0], np.asarray(picture.image))


def test_automatic_layouts_use_only_the_identities_of_the_request(bundle: Bundle) -> None:
    wanted = Request("alice and bob", layout="auto", identities=("alice",))
    assert generate(bundle, OrtBackend(bundle, "cpu", 1), wanted)[0].request.layout == ""


def test_the_recipe_reproduces_the_image(bundle: Bundle) -> None:
    picture = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice and bob", layout=SIDES, likeness=0.5))[0]
    recipe = Request.from_json(picture.request.to_json())
    assert recipe.layout == SIDES and np.array_equal(drawn(bundle, recipe)[0], np.asarray(picture.image))


def test_a_layout_of_a_person_outside_the_prompt_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError) as caught:
        drawn(bundle, Request("alice", layout=SIDES))
    assert caught.value.reason == "not_in_prompt_layout" and caught.value.values["name"] == "bob"


@pytest.mark.parametrize("layout", ["", SIDES])
def test_full_denoising_is_used_only_without_a_layout(bundle: Bundle, layout: str) -> None:
    calls: list[int] = []

    class FullDenoise(OrtBackend):
        def denoise(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, state: Any, noise: Any, conditioning: Conditioning, table: StepTable, progress: Any
        ) -> NDArray[np.float32]:
            calls.append(table.steps)
            for index in range(table.steps):
                state = self.step(state, index, noise(index), conditioning, table)
                progress(Progress("denoising", index + 1, table.steps))
            return state

    wanted = Request("alice and bob", layout=layout, sampler="euler_a", steps=7)
    events: list[Progress] = []
    whole = generate(bundle, FullDenoise(bundle, "cpu", 1), wanted, events.append)[0]
    assert calls == ([] if layout else [7])
    assert np.array_equal(np.asarray(whole.image), drawn(bundle, wanted)[0])
    assert [event.step for event in events] == [*range(1, 8)] and {event.total for event in events} == {7}
