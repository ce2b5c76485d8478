"""Weights, breaks, changes and wildcards: the published examples of AUTOMATIC1111's web UI, people, and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celebctl_runtime.errors import CelebctlError, InvalidInputError, NotFoundError, UsageError
from celebctl_runtime.prompting.prompt import Mention
from celebctl_runtime.prompting.prompt_schedule import schedule_prompt
from celebctl_runtime.prompting.weights import parse_weights, uses_syntax
from celebctl_runtime.prompting.wildcards import Choice, expand_request, expand_wildcards
from celebctl_runtime.request import Request

PEOPLE = {"alice", "bob", "ann-marie"}


def read(prompt: str) -> list[list[tuple[str, float]]]:
    """The parts of each section: text, or <name>, and weight."""
    return [
        [(f"<{one.part.name}>" if isinstance(one.part, Mention) else one.part.text, one.weight) for one in section]
        for section in parse_weights(prompt, PEOPLE)
    ]


@pytest.mark.parametrize(  # from the documentation of parse_prompt_attention in modules/prompt_parser.py
    ("prompt", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("\\(literal\\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1),
            ],
        ),
    ],
)  # fmt: skip
def test_weights_are_those_of_the_web_ui(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert read(prompt) == [parts]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a) b]", [[("a) b]", 1.0)]]),
        ("[x]", [[("x", 1 / 1.1)]]),
        ("(x: 1.5 )", [[("x", 1.5)]]),
        ("(x:-1)", [[("x", -1.0)]]),
        ("x:1.5)", [[("x:1.5)", 1.0)]]),
        ("a\\\\(b)", [[("a\\", 1.0), ("b", 1.1)]]),
        ("a\\b (c)", [[("a\\b ", 1.0), ("c", 1.1)]]),
        ("(alice:1.2) and Bob", [[("<alice>", 1.2), (" and ", 1.0), ("<bob>", 1.0)]]),
        ("((<ann-marie>) smiles:2)", [[("<ann-marie>", 2.2), (" smiles", 2.0)]]),
        ("(\\alice) \\<bob> \\(alice\\)", [[("alice", 1.1), (" <bob> (", 1.0), ("<alice>", 1.0), (")", 1.0)]]),
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("(a BREAK b:2)", [[("a", 2.0)], [("b", 2.0)]]),
        ("BREAKFAST break", [[("BREAKFAST break", 1.0)]]),
    ],
)
def test_people_breaks_and_escapes(prompt: str, sections: list[list[tuple[str, float]]]) -> None:
    assert read(prompt) == [[(text, pytest.approx(weight)) for text, weight in section] for section in sections]


def test_empty_sections() -> None:
    assert read("") == [[]] and read("a BREAK BREAK b BREAK") == [[("a", 1.0)], [], [("b", 1.0)], []]


@pytest.mark.parametrize(  # from the documentation of get_learned_conditioning_prompt_schedules, for 10 steps
    ("prompt", "schedule"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]),
        ("[fe|]male", [(step, "female" if step % 2 else "male") for step in range(1, 11)]),
        ("[fe|||]male", [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")]),
    ],
)
def test_changes_are_those_of_the_web_ui(prompt: str, schedule: list[tuple[int, str]]) -> None:
    assert list(schedule_prompt(prompt, 10)) == schedule


def test_the_example_of_the_web_ui_with_five_changes() -> None:
    """The comment at the head of modules/prompt_parser.py."""
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert schedule_prompt(prompt, 100) == (
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    )


@pytest.mark.parametrize(
    ("prompt", "schedule"),
    [
        ("[alice:bob:0.5]", [(5, "alice"), (10, "bob")]),
        ("[day::4] x", [(4, "day x"), (10, " x")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("\\[a:b:3\\]", [(10, "\\[a:b:3\\]")]),
        ("a | b [c:3]", [(3, "a | b "), (10, "a | b c")]),
        ("[[x:y]:3]", [(10, "[[x:y]:3]")]),
    ],
)
def test_changes_at_the_edges(prompt: str, schedule: list[tuple[int, str]]) -> None:
    assert list(schedule_prompt(prompt, 10)) == schedule


@settings(max_examples=300, deadline=None)
@given(st.text("ab alice()[]:|\\{}_.15", max_size=40), st.integers(1, 12))
@example("(" * 100, 1)
def test_every_text_is_read_or_refused(prompt: str, steps: int) -> None:
    """Whatever the brackets: the timeline covers all steps, and without brackets nothing changes."""
    try:
        schedule = schedule_prompt(prompt, steps)
        sections = [read(text) for _, text in schedule]
    except CelebctlError as error:
        assert error.reason in {"invalid_weight", "weight_out_of_range", "too_many_brackets"}
        return
    ends = [end for end, _ in schedule]
    assert ends == sorted(set(ends)) and ends[-1] == steps
    if not uses_syntax(prompt):
        assert ends == [steps] and all(weight == 1.0 for _, weight in sections[0][0])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("(x:1.2.3)", "invalid_weight"),
        ("(x:.)", "invalid_weight"),
        ("(x:101)", "weight_out_of_range"),
        (f"(x:{'9' * 400})", "weight_out_of_range"),
        ("(((x:9):9):9)", "weight_out_of_range"),
        ("(" * 101, "too_many_brackets"),
        ("[" * 101 + "x:3", "too_many_brackets"),
    ],
)
def test_bad_weights_and_brackets(prompt: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        schedule_prompt(prompt, 10)
        parse_weights(prompt, PEOPLE)
    assert caught.value.reason == reason


# Wildcards


def test_a_seed_chooses_the_same_text_everywhere(tmp_path: Path) -> None:
    """The choices are part of the recipe's meaning: these were computed with hashlib alone."""
    template = "a {red|green|blue} {hat|scarf} {tall} {}"
    prompts = [expand_wildcards(template, seed, tmp_path)[0] for seed in (0, 1, 2)]
    assert prompts == ["a green hat {tall} {}", "a green hat {tall} {}", "a red hat {tall} {}"]
    counts = [sum(f" {word}" in expand_wildcards(template, seed, tmp_path)[0] for seed in range(300)) for word in
              ("red", "green", "blue")]  # fmt: skip
    assert sum(counts) == 300 and min(counts) > 75


def test_wildcards_from_files(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_text("\ufeff# colours\nred\n\n  dark {blue|green}  \n", encoding="utf-8")
    (tmp_path / "hat.txt").write_text("__colour__ hat\n")
    found = {expand_wildcards("__hat__, snake__case__name, __ x __", seed, tmp_path)[0] for seed in range(40)}
    assert found == {f"{one} hat, snake__case__name, __ x __" for one in ("red", "dark blue", "dark green")}
    assert expand_wildcards("{[a|b]|[a|b]}", 0, tmp_path)[1] == (Choice("{[a|b]|[a|b]}", "[a|b]"),)


def test_requests_keep_the_template(tmp_path: Path) -> None:
    request = Request("{a|b}", "{a|b}", seed=5, syntax="weighted")
    expanded, choices = expand_request(request, tmp_path)
    assert (expanded.template, len(choices)) == ("{a|b}", 2)
    assert expanded.prompt in ("a", "b") and expanded.negative in ("a", "b")
    assert expand_request(Request("{a|b}", syntax="plain"), tmp_path)[0].prompt == "{a|b}"
    assert Request.from_json(expanded.to_json()) == expanded
    assert "syntax" not in Request("a").to_json() and "template" not in Request("a").to_json()


def test_bad_wildcards(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "large.txt").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "loop.txt").write_text("a __loop__")
    (tmp_path / "folder.txt").mkdir()
    expected: dict[str, tuple[type[CelebctlError], str]] = {
        "__../secret__": (UsageError, "invalid_wildcard"),
        "__/etc/passwd__": (UsageError, "invalid_wildcard"),
        "__missing__": (NotFoundError, "no_wildcard_file"),
        "__folder__": (NotFoundError, "no_wildcard_file"),
        "__empty__": (InvalidInputError, "invalid_wildcard_file"),
        "__latin__": (InvalidInputError, "invalid_wildcard_file"),
        "__large__": (InvalidInputError, "file_too_large"),
        "__loop__": (UsageError, "too_many_wildcards"),
    }
    for prompt, (kind, reason) in expected.items():
        with pytest.raises(kind) as caught:
            expand_wildcards(f"a {prompt} b", 0, tmp_path)
        assert caught.value.reason == reason, prompt
