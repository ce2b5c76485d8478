"""mini's CLIP tokenizer: byte-pair merges learned so that every word of its world is one token."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

#: Words outside the grammar that people are likely to type; one token each keeps their prompts short.
COMMON = (
    "alice bob carol dave anna ann tom mia leo sks ks is are at on of to his her their with without happy sad old "
    "young friends friend beautiful colorful painting sketch style high quality best detailed blurry ugly boy girl "
    "people two three"
).split()


def learn_merges(words: list[str], symbols: dict[str, str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016) over words seen once each, until every word is whole.

    ``symbols`` maps a character to its byte-level symbol. Ties go to the pair that sorts first: the trainer of the
    tokenizers library breaks them by the order of a randomly seeded hash table and never gives the same list twice.
    """
    split = [[*(symbols[c] for c in word[:-1]), symbols[word[-1]] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merged(pieces, best) for pieces in split]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """``pieces`` with every occurrence of ``pair`` joined, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def build_tokenizer(words: list[str], folder: Path) -> int:
    """Learn merges on ``words`` and save a CLIPTokenizer to ``folder``; returns its size.

    Each word becomes one token; a word that does not is a ValueError. The same words give the same tokenizer.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    unique = sorted(set(words))
    letters = {c: c for word in unique for c in word}  # ASCII letters are their own byte-level symbols
    merges = learn_merges(unique, letters)
    # CLIP's own order: bytes, bytes at word end, merges, then the two specials.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [symbol + "</w>" for symbol in alphabet]
    tokens = [*alphabet, *ends, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = cast(Any, CLIPTokenizer)(vocab=vocab, merges=merges, model_max_length=77)
    split = [w for w in unique if len(tokenizer(w)["input_ids"]) != 3]
    if split:
        raise ValueError(f"{len(split)} words are not one token each, first: {split[:5]}")
    tokenizer.save_pretrained(folder)
    return len(vocab)
