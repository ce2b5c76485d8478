"""Windows and weights compared with an independent implementation in torch, and prompts in the pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from bundle_fakes import make_identity, write_bundle
from numpy.typing import NDArray

from celebctl_runtime.backends.base import Conditioning, Encodings
from celebctl_runtime.backends.ort import OrtBackend
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.encoded_request import RequestPrompts
from celebctl_runtime.errors import UsageError
from celebctl_runtime.explain import explain
from celebctl_runtime.pipeline import generate
from celebctl_runtime.prompting.tokenizer import PromptTokenizer, PromptWindows
from celebctl_runtime.prompting.weights import emphasize, parse_weights
from celebctl_runtime.request import Request, batch, resolve
from celebctl_runtime.sampling.samplers import StepTable


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle", spare_rows=16, long_prompts=True)
    bundle.add(make_identity("alice", 1))
    bundle.add(make_identity("bob", 2))
    return bundle


@pytest.fixture
def backend(bundle: Bundle) -> OrtBackend:
    return OrtBackend(bundle, "cpu", threads=1)


def weighted(prompt: str, **more: Any) -> Request:
    return Request(prompt, syntax="weighted", **more)


def pixels(bundle: Bundle, backend: OrtBackend, *requests: Request) -> list[NDArray[Any]]:
    return [np.asarray(picture.image) for picture in generate(bundle, backend, list(requests))]


# Windows


def web_ui_chunks(tokens: list[tuple[int, int]], comma: int) -> list[list[int]]:
    """The chunks of one section as the web UI's tokenize_line makes them: (id, ids that stay together) per token.

    Written on its own, from the description of that function: indices into a flat list instead of pieces.
    """
    chunks: list[list[int]] = []
    chunk: list[int] = []
    last = -1
    for token, length in tokens:
        if token == comma:
            last = len(chunk)
        elif len(chunk) == 75 and last != -1 and len(chunk) - last <= 20:
            chunks.append(chunk[: last + 1])
            chunk, last = chunk[last + 1 :], -1
        if len(chunk) + length > 75:
            chunks.append(chunk)
            chunk, last = [], -1
        chunk += [token] * length
    return [*chunks, chunk]


@pytest.mark.parametrize("seed", range(25))
def test_windows_are_the_chunks_of_the_web_ui(bundle: Bundle, seed: int) -> None:
    """Random prompts of one-token words, commas and people, up to five windows."""
    generator = np.random.default_rng(seed)
    words = generator.choice(["of", "and", ",", "alice"], generator.integers(0, 330), p=[0.45, 0.4, 0.05, 0.1]).tolist()
    tokenizer, people = bundle.tokenizer(), bundle.token_ids
    windows = tokenizer.encode_windows(parse_weights(" ".join(words), people), people)
    ids = {word: int(tokenizer.encode(word, {}).ids[1]) for word in ("of", "and", ",")}
    flat = [(people["alice"][0], 2) if word == "alice" else (ids[word], 1) for word in words]
    chunks = web_ui_chunks(flat, ids[","])
    assert windows.counts == tuple(map(len, chunks)) and not windows.dropped_text
    second = people["alice"][1]
    for row, chunk in zip(windows.ids.tolist(), chunks, strict=True):
        body = row[1 : len(chunk) + 1]
        assert [people["alice"][0] if one == second else one for one in body] == chunk
        assert row[0] == tokenizer.bos and set(row[len(chunk) + 1 :]) == {tokenizer.eos}
    for name, window, index in windows.positions:
        assert tuple(windows.ids[window, index : index + 2]) == people[name]


def test_breaks_and_the_limit(bundle: Bundle) -> None:
    tokenizer, people = bundle.tokenizer(), bundle.token_ids

    def counts(prompt: str) -> tuple[int, ...]:
        return tokenizer.encode_windows(parse_weights(prompt, people), people).counts

    assert counts("") == (0,) and counts("BREAK") == (0,) and counts("of BREAK") == (1,)
    assert counts("of BREAK BREAK alice") == (1, 0, 2)
    assert counts("of " * 64 * 75)[-1] == 75
    with pytest.raises(UsageError) as caught:
        counts("of " * (64 * 75 + 1))
    assert caught.value.reason == "prompt_too_long" and caught.value.values["maximum"] == 4800


# Numbers


@pytest.mark.parametrize("joint", [False, True])
def test_weights_and_windows_equal_torch(tmp_path: Path, joint: bool) -> None:
    """CLIP from transformers, one call per window, multiplied and rescaled in float64 torch as sd_emphasis does."""
    torch = pytest.importorskip("torch")
    from transformers import CLIPTextConfig, CLIPTextModel

    bundle = write_bundle(tmp_path / "b")
    tokenizer = bundle.tokenizer()
    sizes: dict[str, Any] = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    models = [
        cast(Any, CLIPTextModel)(
            CLIPTextConfig(vocab_size=600, hidden_size=width, eos_token_id=tokenizer.eos, **sizes)
        ).eval()
        for width in (16, 24)
    ]
    for model in models:  # as a trained one, whose mean is not zero
        biases = [one for name, one in model.named_parameters() if name.endswith("final_layer_norm.bias")]
        torch.nn.init.normal_(biases[0], 0.1, 0.3)
    prompt = "of (and of:1.4), [of " + "and of, " * 40 + "] BREAK (of:0.3)"
    windows = tokenizer.encode_windows(parse_weights(prompt, ()), {})
    assert len(windows.ids) == 3 and len(np.unique(windows.weights)) == 4
    expected: list[Any] = []
    contexts: list[Any] = []
    with torch.no_grad():
        for model in models:
            encoded = [model(torch.tensor(row[None])).last_hidden_state[0].double() for row in windows.ids]
            contexts.append(torch.stack(encoded))
        groups = [torch.cat(contexts, dim=-1)] if joint else contexts
        for group in groups:
            weights = torch.tensor(windows.weights)[:, :, None]
            changed = group * weights * (group.mean((1, 2)) / (group * weights).mean((1, 2)))[:, None, None]
            expected.append(changed.flatten(0, 1))  # (3 * 77, width)
    together = torch.cat(contexts, dim=-1).float().numpy()
    actual = emphasize(together, windows.weights, [40] if joint else [16, 24]).reshape(3 * 77, 40)
    assert np.abs(actual - torch.cat(expected, dim=-1).numpy()).max() < 1e-5 * max(1, np.abs(actual).max())


def test_windows_without_weights_are_unchanged() -> None:
    context = np.random.default_rng(0).standard_normal((2, 77, 8), np.float32)
    weights = np.ones((2, 77), np.float32)
    weights[1, 3] = 1.2
    changed = emphasize(context, weights, [8])
    assert np.array_equal(changed[0], context[0]) and not np.allclose(changed[1], context[1])
    assert changed[1].mean() == pytest.approx(context[1].mean(), abs=1e-6)
    centered = context - context.mean(dtype=np.float64).astype(np.float32)
    centered -= centered.mean(axis=2, keepdims=True)
    assert np.allclose(emphasize(centered, weights, [8]), centered * weights[:, :, None])


# The pipeline


class RecordingBackend(OrtBackend):
    """Notes the contexts of the steps and the prompts encoded."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, "cpu", threads=1)
        self.steps: list[Conditioning] = []
        self.encoded = 0

    def encode(self, ids: NDArray[np.int64], overrides: Any = ()) -> Encodings:
        self.encoded += len(ids)
        return super().encode(ids, overrides)

    def step(
        self,
        state: NDArray[np.float32],
        index: int,
        noise: NDArray[np.float32],
        conditioning: Conditioning,
        table: StepTable,
    ) -> NDArray[np.float32]:
        self.steps.append(conditioning)
        return super().step(state, index, noise, conditioning, table)


@pytest.mark.parametrize("prompt", ["alice and bob", "", "\\alice, <bob>", "a:b | c {x} _y_ <3"])
def test_a_prompt_without_syntax_is_drawn_as_plain(bundle: Bundle, backend: OrtBackend, prompt: str) -> None:
    plain, same = generate(bundle, backend, [Request(prompt, seed=3), weighted(prompt, seed=3)])
    assert np.array_equal(np.asarray(plain.image), np.asarray(same.image))
    assert same.request == plain.request and "syntax" not in same.request.to_json()


def test_old_recipes_keep_their_brackets(bundle: Bundle, backend: OrtBackend) -> None:
    """A recipe without ``syntax`` means plain text: the same ids as a weighted prompt with escapes."""
    old = Request.from_json({"prompt": "(alice:1.3) [of] BREAK", "seed": 3})
    assert RequestPrompts(bundle, [resolve(old, bundle.manifest)], ()).encoded(0).windows == 1
    escaped = weighted("\\(alice:1.3\\) \\[of\\] break", seed=3)
    plain, literal = pixels(bundle, backend, old, escaped)
    assert np.array_equal(plain, literal)
    (new,) = generate(bundle, backend, weighted("(alice:1.3) [of] BREAK", seed=3))
    assert not np.array_equal(np.asarray(new.image), plain) and new.request.syntax == "weighted"
    assert np.array_equal(pixels(bundle, backend, Request.from_json(new.request.to_json()))[0], np.asarray(new.image))


def test_nothing_is_cut_where_the_graph_allows(bundle: Bundle, backend: OrtBackend, tmp_path: Path) -> None:
    prompt = "of " * 75 + "alice at sea"
    (long,) = generate(bundle, backend, weighted(prompt))
    assert long.record["dropped_text"] == "" and long.request.syntax == "weighted"
    (old,) = generate(bundle, backend, Request(prompt))
    assert old.record["dropped_text"] == "of of at sea"
    assert not np.array_equal(np.asarray(long.image), np.asarray(old.image))
    fixed = write_bundle(tmp_path / "fixed", spare_rows=16)
    fixed.add(make_identity("alice", 1))
    (cut,) = generate(fixed, OrtBackend(fixed, "cpu", 1), weighted(prompt))
    assert cut.record["dropped_text"] == "of of at sea" and cut.request.syntax == "plain"


def test_guidance_pads_the_shorter_prompt_with_an_empty_window(bundle: Bundle) -> None:
    backend = RecordingBackend(bundle)
    generate(bundle, backend, weighted("alice BREAK bob [of:1]", negative="of", steps=2))
    contexts = [one.context for one in backend.steps]
    assert [context.shape for context in contexts] == [(2, 1, 154, 8)] * 2
    ids = bundle.tokenizer().encode("", {}).ids[None]
    assert np.allclose(contexts[0][0, 0, 77:], backend.encode(ids)[0][0], atol=1e-6)


def test_changes_select_the_prompt_of_each_step(bundle: Bundle) -> None:
    """Each distinct prompt is encoded once, and step k is a step of the image with its prompt alone."""
    backend = RecordingBackend(bundle)
    (changed,) = generate(bundle, backend, weighted("[alice|bob]", negative="[of:and:0.5]", steps=5, seed=1))
    firsts = [int(np.abs(one.context - backend.steps[0].context).max() < 1e-6) for one in backend.steps]
    assert firsts == [1, 0, 0, 0, 0] and backend.encoded == 4 and len({id(one) for one in backend.steps}) == 4
    assert changed.request.identities == ("alice", "bob")
    plain = RecordingBackend(bundle)
    for prompt, negative, step in (("alice", "of", 0), ("bob", "of", 1), ("alice", "and", 2), ("bob", "and", 3)):
        encoded = RequestPrompts(bundle, [resolve(Request(prompt, negative), bundle.manifest)], ()).encoded(0).parts[0]
        rows = np.concatenate([encoded.negative.ids, encoded.prompt.ids])
        assert np.allclose(plain.encode(rows)[0], backend.steps[step].context[:, 0], atol=1e-6)


@pytest.mark.parametrize("layout", ["", "left:alice,right:bob"])
def test_a_blend_mixes_the_prompts_of_each_step(bundle: Bundle, layout: str) -> None:
    """Both ends have as many windows, are weighted before they are mixed, and change at their own steps."""

    class StepwiseBackend(RecordingBackend):
        denoise = cast(Any, None)  # that runs all steps at once

    long, changing = "alice chess BREAK (bob:1.3)", "[alice|bob] of [and:bob:0.5]"
    ends = [weighted(prompt, seed=2, steps=4, layout=layout) for prompt in (long, changing)]
    if layout:  # a person of the layout is in the prompt
        ends[0] = replace(ends[0], prompt=long + " and alice")
    one = replace(ends[0], toward=changing, blend=0.25)
    contexts: list[NDArray[np.float32]] = []
    images: list[NDArray[Any]] = []
    for request in (*ends, one, replace(one, blend=0.0), replace(one, blend=1.0)):
        backend = StepwiseBackend(bundle)
        images += pixels(bundle, backend, request)
        contexts.append(np.stack([step.context[-1, 0] for step in backend.steps]))
    first, second, mixed, *_ = contexts
    empty = RecordingBackend(bundle).encode(bundle.tokenizer().encode("", {}).ids[None])[0]
    padded = np.concatenate([second, np.broadcast_to(empty, (len(second), 77, 8))], axis=1)
    assert np.allclose(mixed, 0.75 * first + 0.25 * padded, atol=1e-5) and np.ptp(second[:, 1], axis=0).max() > 0.01
    assert np.array_equal(images[3], images[0]) and not np.array_equal(images[4], images[0])
    explained = explain(bundle, one)
    assert explained.windows == 2 and explained.people == ("alice", "bob")
    texts = [part.toward.text for part in explained.parts if part.toward is not None]
    assert texts == ["alice of and", "bob of and", "alice of bob", "bob of bob"]


def test_a_change_at_the_end_is_no_change(bundle: Bundle, backend: OrtBackend) -> None:
    same, alone = pixels(bundle, backend, weighted("[alice:bob:1.0]"), weighted("alice"))
    assert np.array_equal(same, alone)


@pytest.mark.parametrize("prompt", ["(alice:1.4) and bob", "[alice:bob:0.5]", "alice BREAK and bob", "[alice|bob] and"])
def test_batches_layouts_and_likeness(bundle: Bundle, prompt: str) -> None:
    """Image k of a batch equals the single image; regions, likeness and overrides work with every form."""

    class BatchingBackend(OrtBackend):
        @property
        def batch_limit(self) -> int:
            return 3

    request = weighted(prompt, layout="left:alice,right:bob", likeness=0.7, seed=4, steps=3)
    requests = [*batch(request, 2), replace(request, prompt="alice and bob"), *batch(replace(request, layout=""), 2)]
    together = pixels(bundle, BatchingBackend(bundle, "cpu", 1), *requests)
    for one, image in zip(requests, together, strict=True):
        assert np.array_equal(pixels(bundle, OrtBackend(bundle, "cpu", 1), one)[0], image)
    assert len({image.tobytes() for image in together}) == 5
    other = [np.asarray(picture.image) for picture in generate(
        bundle, OrtBackend(bundle, "cpu", 1), request, overrides=[make_identity("bob", 9)])]  # fmt: skip
    assert not np.array_equal(other[0], together[0])


def test_a_layout_follows_people_who_stay(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", spare_rows=16, long_prompts=True)
    for name in ("alice", "bob"):
        bundle.add(make_identity(name, 3))
    layouts = [
        explain(bundle, weighted(prompt, layout="auto")).request.layout
        for prompt in ("alice and bob [at day:at night:0.5]", "[alice:bob:0.5]", "(alice) and [bob]")
    ]
    assert layouts == ["left:alice,right:bob", "", "left:alice,right:bob"]


def test_explain_tells_what_was_understood(bundle: Bundle) -> None:
    explained = explain(bundle, weighted("(alice:1.2) [of:3] BREAK and", negative="[x]", steps=5, seed=2))
    assert (explained.steps, explained.windows, explained.people) == (5, 2, ("alice",))
    assert [part.steps for part in explained.parts] == [((1, 3),), ((4, 5),)]
    later = explained.parts[1].prompt
    assert [(one.text, one.weight, one.person, one.section) for one in later.pieces] == [
        ("alice", 1.2, "alice", 0), (" of", 1.0, "", 0), ("and", 1.0, "", 1),
    ]  # fmt: skip
    assert later.windows == (3, 1) and [(one.person, one.window, one.token) for one in later.people] == [
        ("alice", 0, 1)
    ]
    assert math.isclose(explained.parts[0].negative.pieces[0].weight, 1 / 1.1)
    assert explain(bundle, weighted("alice")).request.syntax == "plain"


def test_errors_come_before_anything_is_drawn(bundle: Bundle, backend: OrtBackend) -> None:
    events: list[object] = []
    for prompt in ("(x:1.2.3)", "(" * 101, "of " * 5000):
        with pytest.raises(UsageError):
            generate(bundle, backend, [Request("alice"), weighted(prompt)], events.append)
    with pytest.raises(UsageError):
        generate(bundle, backend, Request("alice", syntax="other"), events.append)
    assert not events


def windows_of(tokenizer: PromptTokenizer, prompt: str) -> PromptWindows:
    return tokenizer.encode_windows(parse_weights(prompt, ()), {})


def test_equal_ids_with_other_weights_differ(bundle: Bundle, backend: OrtBackend) -> None:
    one, other = windows_of(bundle.tokenizer(), "of (and:1.5)"), windows_of(bundle.tokenizer(), "of and")
    assert np.array_equal(one.ids, other.ids) and not np.array_equal(one.weights, other.weights)
    images = pixels(bundle, backend, weighted("of (and:1.5)"), weighted("of (and:0.5)"), weighted("of and"))
    assert len({image.tobytes() for image in images}) == 3
