"""mini's CLIP tokenizer: byte-pair merges learned so that every word of its world is one token."""

from __future__ import annotations

from pathlib import Path

#: Words outside the grammar that people are likely to type; one token each keeps their prompts short.
COMMON = (
    "alice bob carol dave anna ann tom mia leo sks ks is are at on of to his her their with without happy sad old young friends friend "
    "beautiful colorful painting sketch style high quality best detailed blurry ugly boy girl people two three"
).split()


def build_tokenizer(words: list[str], folder: Path) -> int:
    """Train byte-pair merges on ``words`` (each becomes one token) and save a CLIPTokenizer to ``folder``; returns its size.

    BPE training with every word seen once keeps merging until each word is whole, and replaying the merges gives the
    same; merges laid by hand from the left do not (RUNTIME of the idea: `tokenizers`' BpeTrainer, end-of-word "</w>").
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    unique = sorted(set(words))
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(unique)], trainer)
    import json

    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    # CLIP's own order: bytes, bytes at word end, merges, then the two specials.
    symbols = sorted(alphabet)
    tokens = (
        symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    )
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    split = [w for w in unique if len(tokenizer(w)["input_ids"]) != 3]
    if split:
        raise ValueError(f"{len(split)} words are not one token each, first: {split[:5]}")
    tokenizer.save_pretrained(folder)
    return len(vocab)
