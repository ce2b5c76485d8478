"""Prompts get the same ids as from transformers' CLIPTokenizer, plus the ids of people."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from bundle_fakes import write_tokenizer
from conftest import build_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celebctl_runtime.errors import IntegrityError, NotFoundError
from celebctl_runtime.prompting.prompt import Mention, PlainText, split_prompt
from celebctl_runtime.prompting.tokenizer import PromptTokenizer

WORDS = ("the", "photo", "and", "playing", "chess", "don't", "naïve", "日本", "hello", "beach", "smiling", "12")
ENDS = ("<|startoftext|>", "<|endoftext|>")
PEOPLE = {"alice": (9001, 9002), "ann": (9003, 9004), "anna": (9005, 9006), "ann-marie": (9007, 9008)}

awkward = st.sampled_from(
    ["don't", "I'VE", "  ", "\u00a0", "\t\n", "é", "e\u0301", "ﬁ", "İ", "ß", "日本語", "🙂", "½", "--"]
)
texts = st.lists(st.text() | awkward | st.sampled_from(WORDS)).map(" ".join) | st.text()


@pytest.fixture(scope="module")
def reference() -> Any:
    return build_tokenizer(WORDS)


@pytest.fixture(scope="module")
def tokenizer(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> PromptTokenizer:
    """Our tokenizer on a file that transformers saved."""
    folder = tmp_path_factory.mktemp("tokenizer")
    reference.save_pretrained(str(folder))
    return PromptTokenizer(
        folder / "tokenizer.json",
        bos=reference.bos_token_id,
        eos=reference.eos_token_id,
        pad=reference.pad_token_id,
    )


def expected_ids(reference: Any, text: str) -> list[int]:
    encoding = reference(text, padding="max_length", truncation=True, max_length=77, split_special_tokens=True)
    return cast("list[int]", encoding["input_ids"])


@settings(max_examples=300, deadline=None)
@given(texts)
@example("")
@example("don't  STOP\u00a0playing; naïve 12½ 日本!!! 🙂")
@example("a photo of <|endoftext|> and <|startoftext|>")
@example("x" * 500)
@example("1 2 3 " * 60)
@example("<lora:x:0.5> (word:1.2) [x] <3 a<b>c")
def test_plain_prompts_equal_transformers(reference: Any, tokenizer: PromptTokenizer, text: str) -> None:
    escaped = text.replace("<b>", "\\<b>")
    try:
        encoded = tokenizer.encode(escaped, {})
    except NotFoundError:  # hypothesis wrote a <name>
        return
    if escaped == text and "\\<" not in text:
        assert encoded.ids.tolist() == expected_ids(reference, text)
    assert encoded.people == () and encoded.ids.dtype == np.int64


def test_literal_special_tokens_are_plain_text(reference: Any, tokenizer: PromptTokenizer) -> None:
    for special in ENDS:
        ids = tokenizer.encode(f"chess {special} beach", {}).ids.tolist()
        assert ids.index(reference.eos_token_id) > 5
        assert ids.count(reference.bos_token_id) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *PEOPLE, "alice's", "(alice)", "ann,", "<anna>", "ALICE!"]), max_size=40))
def test_people_do_not_change_the_ids_of_other_words(
    reference: Any, tokenizer: PromptTokenizer, words: list[str]
) -> None:
    """With each person's ids replaced by the id of "photo", the ids equal those of the prompt with that word."""
    prompt, plain = " ".join(words), " ".join(words)
    for name in sorted(PEOPLE, key=len, reverse=True):
        plain = plain.replace(f"<{name}>", "photo").replace(name, "photo").replace(name.upper(), "photo")
    encoded = tokenizer.encode(prompt, PEOPLE)
    body = expected_ids(reference, plain)[1:]
    if encoded.dropped_text or reference.eos_token_id not in body:
        return
    photo = reference.convert_tokens_to_ids("photo</w>")
    folded: list[int] = []
    skip = False
    for token in encoded.ids[1:].tolist():
        if not skip:
            folded.append(photo if token > 9000 else token)
        skip = token > 9000 and not skip
    end = body.index(reference.eos_token_id)
    assert folded[: end + 1] == body[: end + 1]


@pytest.mark.parametrize(
    ("prompt", "people"),
    [
        ("alice", ("alice",)),
        ("Alice's and <ANN>!", ("alice", "ann")),
        ("anna and ann and anna", ("anna", "ann")),
        ("annabel, malice, alices, alice2, alice_x, x_alice", ()),
        ("ann-marie", ("ann-marie",)),
        ("ann-lena, mary-ann", ()),
        ("ann- (ann) -ann", ("ann",)),
        ("annä annà a\u0301nn ann\u0301", ()),
        ("\\alice and \\<anna> and alice", ("alice",)),
        ("a\\alice", ()),
        ("<|alice|>", ("alice",)),
        ("日本alice", ()),
        ("alice alice", ("alice",)),
    ],
)
def test_names_match_whole_words(tokenizer: PromptTokenizer, prompt: str, people: tuple[str, ...]) -> None:
    assert tokenizer.encode(prompt, PEOPLE).people == people


def test_positions_point_at_the_ids(tokenizer: PromptTokenizer) -> None:
    encoded = tokenizer.encode("photo and alice playing anna", PEOPLE)
    assert [name for name, _ in encoded.positions] == ["alice", "anna"]
    for name, index in encoded.positions:
        assert tuple(encoded.ids[index : index + 2].tolist()) == PEOPLE[name]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", []),
        ("hi \\alice there", [PlainText("hi alice there")]),
        ("\\<alice>", [PlainText("<alice>")]),
        ("\\\\alice", [PlainText("\\alice")]),
        ("\\beach \\", [PlainText("\\beach \\")]),
        ("<alice><ann>", [Mention("alice"), Mention("ann")]),
        ("hi alice.", [PlainText("hi "), Mention("alice"), PlainText(".")]),
    ],
)
def test_a_prompt_is_split_into_text_and_mentions(prompt: str, parts: list[PlainText | Mention]) -> None:
    assert split_prompt(prompt, PEOPLE) == parts


def test_an_unknown_person_is_an_error_with_a_suggestion(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(NotFoundError) as caught:
        tokenizer.encode("a photo of <alise>", PEOPLE)
    assert caught.value.reason == "similar_person" and caught.value.values["similar"] == "<alice>"
    assert "<alice>" in caught.value.hint and "ann-marie" in caught.value.hint
    with pytest.raises(NotFoundError) as caught:
        tokenizer.encode("<Zoe>", {})
    assert caught.value.reason == "unknown_person" and caught.value.values["name"] == "zoe"
    assert "\\<zoe>" in caught.value.hint


def test_dropped_text_is_reported(tokenizer: PromptTokenizer) -> None:
    encoded = tokenizer.encode("chess " * 75 + "on the BEACH, smiling", {})
    assert encoded.dropped_text == "on the BEACH, smiling"
    assert tokenizer.encode("chess " * 75, {}).dropped_text == ""


def test_people_are_kept_when_text_is_dropped(tokenizer: PromptTokenizer) -> None:
    encoded = tokenizer.encode("chess " * 80 + "and alice beach anna smiling", PEOPLE)
    assert encoded.people == ("alice", "anna")
    assert encoded.dropped_text == "chess " * 8 + "chess and beach smiling"
    kept = [token for token in encoded.ids.tolist() if token > 9000]
    assert kept == [*PEOPLE["alice"], *PEOPLE["anna"]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 80), st.integers(0, 45))
def test_a_person_is_never_split(tokenizer: PromptTokenizer, before: int, people: int) -> None:
    encoded = tokenizer.encode("chess " * before + "alice " * people, PEOPLE)
    ids = encoded.ids.tolist()
    assert ids.count(9001) == ids.count(9002) == min(people, 37) == len(encoded.positions)
    assert (encoded.dropped_text == "") == (before + 2 * people <= 75)
    assert ids[0] == tokenizer.bos and tokenizer.eos in ids and len(ids) == 77


def test_a_very_long_prompt_is_encoded(tokenizer: PromptTokenizer) -> None:
    encoded = tokenizer.encode("chess alice " * 5_000, PEOPLE)
    assert len(encoded.positions) == 37 and len(encoded.dropped_text) > 50_000


def test_padding_may_be_another_token(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    encoded = PromptTokenizer(tmp_path / "tokenizer.json", 10, bos=1, eos=2, pad=0).encode("an", {})
    assert encoded.ids[0] == 1 and encoded.ids[2] == 2 and not encoded.ids[3:].any() and len(encoded.ids) == 10


def test_a_missing_or_damaged_file_raises(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        PromptTokenizer(tmp_path / "tokenizer.json", bos=0, eos=1, pad=1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError):
        PromptTokenizer(tmp_path / "tokenizer.json", bos=0, eos=1, pad=1)
