"""A minute of fuzzing less than a minute long: every door, inputs that once failed, and text as users type it."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from fuzz.doors import DOORS, fault
from fuzz.guard import fault_of
from fuzz.mutator import mutate_bytes, mutate_json
from hypothesis import given, settings
from hypothesis import strategies as st

from celebctl.cli.options import parse_size
from celebctl.settings import KNOWN, Settings
from celebctl_runtime.errors import CelebctlError, UsageError
from celebctl_runtime.identity import check_name
from celebctl_runtime.prompting.layout import layout_text, normalize_layout, parse_layout
from celebctl_runtime.prompting.likeness import Likeness, parse_likeness
from celebctl_runtime.prompting.prompt import split_prompt
from celebctl_runtime.strict_json import parse_json

REGRESSIONS = sorted((Path(__file__).parent / "fuzz" / "regressions").glob("[!.]*"))
SECONDS = 0.5  # for each door; make fuzz takes an hour
posix = pytest.mark.skipif(os.name == "nt", reason="the guard uses an alarm and POSIX paths")


@posix
@pytest.mark.parametrize("name", DOORS)
def test_a_door_takes_genuine_and_changed_files(name: str, tmp_path: Path) -> None:
    door, chance = DOORS[name], random.Random(f"{name} 1")
    seeds = door.seeds()
    for seed in seeds[:1]:
        assert not fault(door, seed.build(seed.payload), tmp_path.resolve() / "sandbox")
    started, count = time.monotonic(), 0
    while time.monotonic() - started < SECONDS and count < 100:
        content = chance.choice(seeds).mutated(chance)
        problem = fault(door, content, tmp_path.resolve() / "sandbox")
        assert not problem, f"{problem}\n{content[:2000]!r}"
        count += 1
    assert count


@posix
@pytest.mark.parametrize("file", REGRESSIONS, ids=lambda file: file.name)
def test_what_once_failed_is_taken(file: Path, tmp_path: Path) -> None:
    door = DOORS[file.name.rpartition("-")[0]]
    assert not fault(door, file.read_bytes(), tmp_path.resolve() / "sandbox")


@posix
def test_the_guard_sees_what_it_is_for(tmp_path: Path) -> None:
    """Otherwise the fuzzer could find nothing."""
    place = tmp_path / "sandbox"
    place.mkdir()

    def slow() -> None:
        while True:
            time.sleep(0.01)

    assert not fault_of((place / "x").touch, place)
    assert "outside" in fault_of(lambda: (tmp_path / "outside").write_bytes(b""), place)
    assert "os.mkdir" in fault_of((tmp_path / "folder").mkdir, place)
    assert "Popen" in fault_of(lambda: subprocess.run(["true"], check=True), place)
    assert "KeyError" in fault_of(lambda: dict[str, int]()["x"], place)
    assert "exit code 1" in fault_of(lambda: 1, place)
    assert not fault_of(lambda: 5, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fuzz.guard.SECONDS", 0.05)
        assert "longer" in fault_of(slow, place)


def test_equal_seeds_mutate_equally() -> None:
    text = b'{"a": [1, 2.5, "x"], "b": {"c": null}}'
    runs = [
        [mutate_json(random.Random(n), text) + mutate_bytes(random.Random(n), text) for n in range(50)] for _ in "ab"
    ]
    assert runs[0] == runs[1] and len(set(runs[0])) > 40


# Text as users type it.

NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(str), st.sampled_from(["9" * 5000, "1e999", "²", "٣", "-0"])
)
WORDS = st.one_of(st.text(max_size=12), NUMBERS, st.sampled_from(["alice", "left", "auto", "none", "con", "<alice>"]))
PHRASES = st.lists(st.one_of(WORDS, st.sampled_from(list(":@,;= <>\\()x×"))), max_size=12).map("".join)


@settings(max_examples=150, deadline=None)
@given(PHRASES)
def test_typed_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_layout, parse_likeness, normalize_layout, check_name, parse_size):
        try:
            parse(text)
        except UsageError as error:
            assert error.exit_code == 2 and error.problem
    for name in KNOWN:
        try:
            Settings({f"CELEBCTL_{name.upper()}": text}).get(name)
        except UsageError as error:
            assert len(error.problem) < 1000
    try:
        parts = split_prompt(text, {"alice"})
    except CelebctlError as error:
        assert error.exit_code == 4
    else:
        assert parts or not text.strip()


@settings(max_examples=100, deadline=None)
@given(PHRASES)
def test_a_layout_means_the_same_when_it_is_written_again(text: str) -> None:
    try:
        regions = parse_layout(text)
    except UsageError:
        return
    assert [region.name for region in parse_layout(layout_text(regions))] == [region.name for region in regions]


@settings(max_examples=100, deadline=None)
@given(PHRASES)
def test_a_likeness_is_from_0_to_1(text: str) -> None:
    try:
        likeness: Likeness = parse_likeness(text)
    except UsageError:
        return
    scales = [scale for _, scale in likeness] if isinstance(likeness, tuple) else [likeness]
    assert all(0 <= scale <= 1 for scale in scales)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_strict_json_reads_what_json_writes(value: object) -> None:
    import json

    try:
        found = parse_json(json.dumps(value))
    except ValueError:
        assert "\\u0000" in json.dumps(value) or "\\ud" in json.dumps(value)
        return
    assert found == value
