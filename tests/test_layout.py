"""Regions: masks that add up, the algebra that lets a fused step be blended, pictures that know who stands where."""

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

from celebctl_runtime import pipeline
from celebctl_runtime.backends.base import Conditioning
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.errors import UsageError
from celebctl_runtime.pipeline import generate
from celebctl_runtime.prompting.layout import Region, layout_text, parse_layout, region_masks
from celebctl_runtime.request import SAMPLERS, Request, batch
from celebctl_runtime.sampling.samplers import StepTable, step_table

SIDES = "left:alice,right:bob"
edges = st.floats(0, 1).map(lambda edge: round(edge, 3))
spans = st.tuples(edges, edges).filter(lambda span: abs(span[0] - span[1]) > 0.01).map(sorted)
boxes = st.tuples(spans, spans).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))
layouts = st.lists(boxes, min_size=1, max_size=4).map(
    lambda found: tuple(Region(f"p{number}", box) for number, box in enumerate(found))
)


class Company(OrtBackend):
    """The same engine, allowed to run several pictures at once."""

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
def test_masks_add_up_to_one_everywhere(regions: tuple[Region, ...], height: int, width: int) -> None:
    masks = region_masks(regions, height, width)
    assert masks.shape == (1 + len(regions), height, width)
    assert masks.min() >= 0 and np.allclose(masks.sum(0), 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(layouts)
def test_layouts_survive_being_written_down(regions: tuple[Region, ...]) -> None:
    assert parse_layout(layout_text(regions)) == regions


def test_halves_leave_nothing_to_the_whole_prompt() -> None:
    whole, left, right = region_masks(parse_layout(SIDES), 8, 16)
    assert not whole.any() and np.array_equal(left, right[:, ::-1])
    assert (left[:, :6] == 1).all() and (left[:, 10:] == 0).all()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("left:Alice, right:<bob>", SIDES),
        ("alice@0,0,0.5,1 bob@0.5,0,1,1", SIDES),
        ("top:bob;alice@0.25,0.5,1,1", "top:bob,alice@0.25,0.5,1,1"),
        ("none", ""),
        (" ", ""),
    ],
)
def test_layouts_as_they_are_typed(text: str, written: str) -> None:
    assert layout_text(parse_layout(text)) == written


@pytest.mark.parametrize(
    "text",
    ["alice", "north:alice", "left:", "left:alice,left2:bob", "left:alice,right:alice", "alice@0,0,1", "alice@0,0,x,1",
     "alice@0.5,0,0.5,1", "alice@0,0,1.5,1", "alice@-1,0,1,1", "left:a b"],
)  # fmt: skip
def test_layouts_that_make_no_sense_are_refused_with_a_hint(text: str) -> None:
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


def test_no_layout_is_as_before(bundle: Bundle) -> None:
    plain, none = drawn(bundle, Request("alice and bob"), Request("alice and bob", layout="none"))
    assert np.array_equal(plain, none)


def test_a_region_of_everything_is_a_prompt_of_one_person(bundle: Bundle) -> None:
    """The rest of the prompt stays: alice alone in the layout is alice in both places of the sentence."""
    everywhere = Request("alice of bob", layout="alice@0,0,1,1,bob@0,0,0.001,0.001")
    assert np.array_equal(drawn(bundle, everywhere)[0], drawn(bundle, Request("alice of alice"))[0])


def test_each_side_shows_its_person(bundle: Bundle) -> None:
    """The toy network does not mix places, so outside the soft border each side is that person's own picture."""
    both, alices, bobs = drawn(
        bundle, Request("alice of bob", layout=SIDES), Request("alice of alice"), Request("bob of bob")
    )
    assert np.array_equal(both[:, :8], alices[:, :8]) and np.array_equal(both[:, -8:], bobs[:, -8:])
    swapped = drawn(bundle, Request("alice of bob", layout="left:bob,right:alice"))[0]
    assert np.array_equal(swapped[:, :8], bobs[:, :8])


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("engine", [OrtBackend, Company])
def test_picture_k_of_a_batch_is_the_single_picture(
    bundle: Bundle, sampler: str, guidance: float, engine: type[OrtBackend]
) -> None:
    wanted = batch(Request("alice and bob", seed=3, sampler=sampler, guidance=guidance, layout=SIDES), 4)
    mixed = [*wanted, Request("alice and bob"), Request("bob and alice", layout="left:bob,alice@0.2,0,1,1")]
    for request, together in zip(mixed, drawn(bundle, *mixed, engine=engine), strict=True):
        assert np.array_equal(together, drawn(bundle, request)[0])


@pytest.mark.parametrize(
    ("prompt", "layout", "as_if"),
    [
        ("alice and bob", "auto", SIDES),
        ("bob and alice, bob's friend", "Auto", "left:bob,right:alice"),
        ("alice and her dog", "auto", ""),
        ("alice, bob and carol", "auto", ""),
    ],
)
def test_automatic_layouts_follow_the_prompt(bundle: Bundle, prompt: str, layout: str, as_if: str) -> None:
    bundle.add(make_identity("carol", 3))
    automatic, said = drawn(bundle, Request(prompt, layout=layout), Request(prompt, layout=as_if))
    assert np.array_equal(automatic, said)


def usually(bundle: Bundle, layout: str) -> Bundle:
    """The bundle with another choice for requests that say nothing."""
    path = bundle.path / "manifest.json"
    document = json.loads(path.read_text())
    document["defaults"]["layout"] = layout
    path.write_text(json.dumps(document))
    return Bundle.open(bundle.path, verify="none")


def test_a_bundle_may_lay_out_two_people_by_itself(bundle: Bundle) -> None:
    plain, laid_out = drawn(bundle, Request("alice and bob"), Request("alice and bob", layout=SIDES))
    changed = usually(bundle, "auto")
    engine = OrtBackend(changed, "cpu", 1)
    wanted = [Request("alice and bob"), Request("alice and bob", layout="none"), Request("alice")]
    made = generate(changed, engine, wanted)
    assert [picture.request.layout for picture in made] == [SIDES, "none", "none"]
    assert np.array_equal(np.asarray(made[0].image), laid_out) and np.array_equal(np.asarray(made[1].image), plain)
    recipes = [Request.from_json(picture.request.to_json()) for picture in made]
    for recipe, picture in zip(recipes, made, strict=True):  # whatever the bundle's choice has become since
        assert np.array_equal(drawn(usually(bundle, "none"), recipe)[0], np.asarray(picture.image))


def test_only_people_whom_the_request_knows_are_laid_out(bundle: Bundle) -> None:
    wanted = Request("alice and bob", layout="auto", identities=("alice",))
    assert generate(bundle, OrtBackend(bundle, "cpu", 1), wanted)[0].request.layout == ""


def test_the_recipe_draws_the_same_again(bundle: Bundle) -> None:
    picture = generate(bundle, OrtBackend(bundle, "cpu", 1), Request("alice and bob", layout=SIDES, likeness=0.5))[0]
    recipe = Request.from_json(picture.request.to_json())
    assert recipe.layout == SIDES and np.array_equal(drawn(bundle, recipe)[0], np.asarray(picture.image))


def test_a_layout_of_somebody_else_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="bob") as caught:
        drawn(bundle, Request("alice", layout=SIDES))
    assert "--layout" in caught.value.hint


@pytest.mark.parametrize("layout", ["", SIDES])
def test_engines_that_run_whole_are_asked_only_without_a_layout(bundle: Bundle, layout: str) -> None:
    asked: list[int] = []

    class Whole(OrtBackend):
        def denoise(self, state: Any, noise: Any, texts: Conditioning, plan: StepTable, report: Any) -> NDArray[np.float32]:
            asked.append(plan.steps)
            for index in range(plan.steps):
                state = self.step(state, index, noise(index), texts, plan)
                report(index + 1, plan.steps)
            return state

    wanted = Request("alice and bob", layout=layout, sampler="euler_a", steps=7)
    seen: list[pipeline.Progress] = []
    whole = generate(bundle, Whole(bundle, "cpu", 1), wanted, seen.append)[0]
    assert asked == ([] if layout else [7])
    assert np.array_equal(np.asarray(whole.image), drawn(bundle, wanted)[0])
    assert [now.step for now in seen] == [*range(1, 8)] and {now.steps for now in seen} == {7}
