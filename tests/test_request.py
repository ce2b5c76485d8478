"""Requests: defaults, JSON round trips, and errors that name the invalid value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_fakes import write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from celebctl_runtime.bundle.manifest import Manifest
from celebctl_runtime.errors import UsageError
from celebctl_runtime.request import SAMPLERS, Request, batch, resolve

requests = st.builds(
    Request,
    prompt=st.text(),
    negative=st.text(),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(0, 1000),
    guidance=st.none() | st.floats(0, 100),
    sampler=st.sampled_from(SAMPLERS),
    width=st.integers(0, 4096),
    height=st.integers(0, 4096),
    identities=st.none() | st.just(("alice", "bob")),
    likeness=st.floats(0, 1) | st.tuples(st.tuples(st.just("alice"), st.floats(0, 1))),
    layout=st.sampled_from(["", "none", "left:alice,right:bob"]),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    path: Path = tmp_path_factory.mktemp("request") / "bundle"
    return write_bundle(path).manifest


@settings(max_examples=50, deadline=None)
@given(requests)
def test_json_round_trip(request: Request) -> None:
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_open_values_take_the_bundle_defaults(manifest: Manifest) -> None:
    full = resolve(Request("hi"), manifest)
    assert (full.steps, full.guidance, full.sampler, full.width, full.height) == (5, 2.5, "ddim", 32, 32)
    assert resolve(full, manifest) == full
    assert resolve(Request("hi", guidance=0.0), manifest).guidance == 0.0


def test_image_k_of_a_batch_has_seed_plus_k() -> None:
    assert batch(Request("hi", seed=5), 3) == tuple(Request("hi", seed=seed) for seed in (5, 6, 7))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed"),
        ({"steps": -1}, "steps -1"),
        ({"steps": 1001}, "steps 1001"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"guidance": -0.5}, "guidance -0.5"),
        ({"guidance": 1e9}, "guidance"),
        ({"sampler": "plms"}, "plms"),
        ({"width": 30}, "30x32"),
        ({"height": 4104}, "32x4104"),
        ({"height": -8}, "32x-8"),
        ({"likeness": 1.01}, "likeness 1.01"),
        ({"layout": "alice"}, "alice"),
        ({"prompt": "\udcff"}, "prompt"),
        ({"negative": "\udcff"}, "negative"),
    ],
)
def test_invalid_values_are_named(manifest: Manifest, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        resolve(replace(Request("hi"), **changes), manifest)
    assert caught.value.hint


def test_the_suggested_size_is_valid(manifest: Manifest) -> None:
    for width in (1, 13, 30, 5000):
        with pytest.raises(UsageError) as caught:
            resolve(Request("hi", width=width), manifest)
        nearest: Any = caught.value.values["nearest"]
        assert resolve(Request("hi", width=nearest), manifest).width == nearest


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"prompt": 3},
        {"prompt": "hi", "steps": "20"},
        {"prompt": "hi", "steps": True},
        {"prompt": "hi", "seed": 1.5},
        {"prompt": "hi", "identities": "alice"},
        {"prompt": "hi", "identities": ["../alice"]},
        {"prompt": "hi", "colour": "red"},
        {"prompt": "hi", "likeness": "much"},
        {"prompt": "hi", "likeness": {"alice": "much"}},
        {"prompt": "hi", "likeness": {"../alice": 0.5}},
        {"prompt": "hi", "layout": ["left"]},
    ],
)
def test_malformed_json_is_refused_with_a_hint(data: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Request.from_json(data)
    assert caught.value.hint
