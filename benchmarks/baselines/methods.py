"""The methods: functions that learn one or more people and return a generator of their images."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from celebctl.basis.basis import build_basis
from celebctl.evaluation.runner import ImageGenerator, ModelGenerator
from celebctl.learning.captions import place_people
from celebctl.learning.config import PRESETS
from celebctl.learning.prepared import prepare
from celebctl.learning.sampling import rows_of
from celebctl.learning.subject import analyse_photo
from celebctl.learning.trainer import learn_people
from celebctl_models.checkpoints.diffusion import DiffusionParts, context_from_ids

from .training import OBJECT_TEMPLATES, Hyperparameters, Setup, Subject, TrainingPerson, captions_of, tokenise, train

Pixels = NDArray[np.uint8]
FP16 = 2  # bytes per number

#: Identifier words of methods that need one: rare, and one token each in CLIP and in mini.
RARE = ("sks", "ks")


@dataclass(frozen=True)
class LearnedPeople:
    """LearnedPeople people.

    Attributes:
        generator: Generates images of them.
        seconds: Time of learning per person.
        payload_bytes: Numbers that the method stores per person, in float16, without any file header.
    """

    generator: ImageGenerator
    seconds: float
    payload_bytes: int


@dataclass(frozen=True)
class Method:
    """A method and its tuning.

    Attributes:
        name: On the command line.
        rates: Initial learning rates of the sweep.
        joint: Images of two people need a model that learned both, because weights change. Otherwise embeddings that
            were learned separately are used together.
        source: The script that it follows.
        tunable: Hyperparameters that the sweep changes besides the rate.
    """

    name: str
    title: str
    rates: tuple[float, ...]
    joint: bool
    learn: Callable[[Setup, Sequence[Subject], Hyperparameters, int], LearnedPeople]
    source: str
    tunable: tuple[str, ...] = ("share", "batch", "data")


@dataclass(frozen=True)
class PhraseGenerator:
    """Replaces ``<name>`` with a phrase before it generates."""

    inner: ImageGenerator
    words: dict[str, str]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        renamed = list(prompts)
        for name, phrase in self.words.items():
            renamed = [prompt.replace(f"<{name}>", phrase) for prompt in renamed]
        return self.inner.generate(renamed, seeds)


# Token embeddings


def _token_rows(
    setup: Setup, subject: Subject, values: Hyperparameters, seed: int, start: Tensor, l2_weight: float
) -> tuple[Tensor, int]:
    """Two free token embeddings (2, D) from ``start``; ``l2_weight`` penalizes the squared distance to it."""
    parts = setup.parts
    placed = [
        place_people(parts.tokenizers[0], parts.max_length, text.split("{}"))
        for text in captions_of(values, OBJECT_TEMPLATES)
    ]
    ids = torch.stack([row for row, _ in placed]).to(setup.device)
    positions = torch.stack([at[0] for _, at in placed]).to(setup.device)
    rows = nn.Parameter(start.clone())
    person = TrainingPerson(ids, setup.latents(subject, values, True), rows, positions)
    penalty = None if l2_weight == 0 else lambda: l2_weight * ((rows - start) ** 2).sum()
    steps = train(setup, parts.denoiser, [person], [rows], values, seed, penalty=penalty)
    return rows.detach(), steps


def _learn_separately(
    setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int, start: Tensor, l2_weight: float
) -> LearnedPeople:
    begun = time.monotonic()
    rows = {s.name: (_token_rows(setup, s, values, seed, start, l2_weight)[0],) for s in subjects}
    seconds = (time.monotonic() - begun) / len(subjects)
    return LearnedPeople(ModelGenerator(setup.parts, rows), seconds, FP16 * start.numel())


def textual_inversion_two(
    setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int
) -> LearnedPeople:
    """Two vectors, both from the class noun (`--num_vectors 2 --initializer_token person`)."""
    return _learn_separately(setup, subjects, values, seed, _noun_row(setup.parts).expand(2, -1), 0.0)


def cross_initialization(
    setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int
) -> LearnedPeople:
    """Two vectors from the text encoder's output for the mean celebrity name, L2 weight 1e-5 (Pang et al. 2024)."""
    parts = setup.parts
    mean = torch.as_tensor(build_basis(parts).mean[0]).to(setup.device)
    ids, at = place_people(parts.tokenizers[0], parts.max_length, ["", ""])
    positions = at[0].to(setup.device)
    with torch.no_grad():
        context = context_from_ids(parts.text_encoders[0], ids[None].to(setup.device), mean[None], positions[None])
    return _learn_separately(setup, subjects, values, seed, context[0, positions], 1e-5)


def _noun_row(parts: DiffusionParts) -> Tensor:
    ids = parts.tokenizers[0](parts.card.class_noun, add_special_tokens=False).input_ids
    return parts.token_table()[ids[:1]].clone()


def textual_inversion_one(
    setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int
) -> LearnedPeople:
    """One vector from the class noun; it replaces the embedding of a rare word in a copy of the table."""
    begun = time.monotonic()
    words = _words(subjects)
    rows: dict[str, Tensor] = {}
    for subject in subjects:
        texts = [template.format(words[subject.name]) for template in captions_of(values, OBJECT_TEMPLATES)]
        row = nn.Parameter(_noun_row(setup.parts))
        person = _with_word(setup, subject, values, texts, words[subject.name], row)
        train(setup, setup.parts.denoiser, [person], [row], values, seed)
        rows[words[subject.name]] = row.detach()
    seconds = (time.monotonic() - begun) / len(subjects)
    generator = PhraseGenerator(ModelGenerator(_with_rows(setup.parts, rows), {}), words)
    return LearnedPeople(generator, seconds, FP16 * setup.parts.context_width)


def _words(subjects: Sequence[Subject]) -> dict[str, str]:
    return {subject.name: word for subject, word in zip(subjects, RARE, strict=False)}


def _word_id(parts: DiffusionParts, word: str) -> int:
    ids = parts.tokenizers[0](word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise SystemExit(f"{word!r} is {len(ids)} tokens in {parts.name}; the baselines need words of one token")
    return int(ids[0])


def _with_word(
    setup: Setup, subject: Subject, values: Hyperparameters, texts: Sequence[str], word: str, row: Tensor
) -> TrainingPerson:
    """A person whose rare word has a trainable embedding."""
    ids = tokenise(setup.parts, texts)
    positions = (ids == _word_id(setup.parts, word)).int().argmax(1, keepdim=True)
    return TrainingPerson(ids, setup.latents(subject, values, True), row, positions)


def _with_rows(parts: DiffusionParts, rows: dict[str, Tensor]) -> DiffusionParts:
    """The model with a copy of its text encoder in which some words have other embeddings."""
    encoder = copy.deepcopy(parts.text_encoders[0])
    table = encoder.get_input_embeddings().weight
    with torch.no_grad():
        for word, row in rows.items():
            table[_word_id(parts, word)] = row[0].to(table)
    return replace(parts, text_encoders=(encoder,))


# Weights


def dreambooth(setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int) -> LearnedPeople:
    """Every weight of the UNet, with prior preservation (Ruiz et al. 2023)."""
    unet = copy.deepcopy(setup.parts.denoiser).requires_grad_(True).train()
    return _dreambooth(setup, subjects, values, seed, unet, unet.parameters())


def dreambooth_lora(setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int) -> LearnedPeople:
    """Low-rank updates of the attention layers, rank 4, with prior preservation."""
    from peft import LoraConfig  # pyright: ignore  (only this method needs it)

    unet = copy.deepcopy(setup.parts.denoiser)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    return _dreambooth(setup, subjects, values, seed, unet, [p for p in unet.parameters() if p.requires_grad])


def _dreambooth(
    setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int, unet: Any, parameters: Any
) -> LearnedPeople:
    begun = time.monotonic()
    trained = [p for p in parameters if p.requires_grad]
    phrases = {name: f"{word} {setup.parts.card.class_noun}" for name, word in _words(subjects).items()}
    people: list[TrainingPerson] = []
    for subject in subjects:
        texts = [text.format(phrases[subject.name]) for text in captions_of(values, ("a photo of {}",))]
        people.append(TrainingPerson(tokenise(setup.parts, texts), setup.latents(subject, values, False)))
    train(setup, unet, people, trained, values, seed, prior=True)
    unet.eval().requires_grad_(False)
    seconds = (time.monotonic() - begun) / len(subjects)
    generator = PhraseGenerator(ModelGenerator(replace(setup.parts, denoiser=unet), {}), phrases)
    return LearnedPeople(generator, seconds, FP16 * sum(p.numel() for p in trained) // len(subjects))


def custom_diffusion(setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int) -> LearnedPeople:
    """Keys and values of cross attention and one new token each, with prior preservation (Kumari et al. 2023).

    As train_custom_diffusion.py with --hflip and --noaug: no random resizing of the photo.
    """
    begun = time.monotonic()
    unet = copy.deepcopy(setup.parts.denoiser)
    trained = [p for n, p in unet.named_parameters() if "attn2.to_k" in n or "attn2.to_v" in n]
    for parameter in trained:
        parameter.requires_grad_(True)
    words, table = _words(subjects), setup.parts.token_table()
    rows = {word: nn.Parameter(table[[_word_id(setup.parts, word)]].clone()) for word in words.values()}
    phrases = {name: f"{word} {setup.parts.card.class_noun}" for name, word in words.items()}
    people: list[TrainingPerson] = []
    for subject in subjects:
        texts = [text.format(phrases[subject.name]) for text in captions_of(values, ("photo of a {}",))]
        people.append(_with_word(setup, subject, values, texts, words[subject.name], rows[words[subject.name]]))
    train(setup, unet, people, [*trained, *rows.values()], values, seed, prior=True)
    unet.requires_grad_(False)
    parts = replace(_with_rows(setup.parts, {w: row.detach() for w, row in rows.items()}), denoiser=unet)
    stored = sum(p.numel() for p in trained) // len(subjects) + setup.parts.context_width
    seconds = (time.monotonic() - begun) / len(subjects)
    return LearnedPeople(PhraseGenerator(ModelGenerator(parts, {}), phrases), seconds, FP16 * stored)


# The celeb basis


def _celeb_basis(preset: str) -> Callable[[Setup, Sequence[Subject], Hyperparameters, int], LearnedPeople]:
    def learn(setup: Setup, subjects: Sequence[Subject], values: Hyperparameters, seed: int) -> LearnedPeople:
        config = PRESETS[preset]
        steps = max(1, int(setup.budget * values.share) // values.batch)
        config = replace(config, learning_rate=values.rate, steps=steps, views=values.batch, seed=seed)
        model = prepare(setup.parts, release=config.names == "release")
        begun = time.monotonic()
        photos = [analyse_photo(setup.analyser, s.photo, s.name) for s in subjects]
        people = [person for photo in photos for person in learn_people(model, [photo], config, setup.analyser)]
        seconds = (time.monotonic() - begun) / len(subjects)
        generator = ModelGenerator(setup.parts, {p.name: rows_of(p) for p in people})
        return LearnedPeople(generator, seconds, FP16 * model.basis.size)

    return learn


_EXAMPLES = "huggingface/diffusers examples"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "clean", "celebctl (clean)", (5e-4, 1.5e-3, 5e-3), False, _celeb_basis("clean"), "celebctl",
            ("share", "batch"),
        ),
        Method(
            "faithful", "Celeb Basis, published settings", (1e-3, 3e-3, 1e-2, 3e-2), False, _celeb_basis("faithful"),
            "ygtxr1997/CelebBasis", ("share", "batch"),
        ),
        Method(
            "ti1", "Textual Inversion, 1 token", (5e-4, 2e-3, 5e-3, 2e-2), False, textual_inversion_one,
            f"{_EXAMPLES}/textual_inversion",
        ),
        Method(
            "ti2", "Textual Inversion, 2 tokens", (5e-4, 2e-3, 5e-3, 2e-2, 6e-2), False, textual_inversion_two,
            f"{_EXAMPLES}/textual_inversion",
        ),
        Method(
            "crossinit", "Cross Initialization", (6e-4, 2e-3, 5e-3), False, cross_initialization,
            "lyuPang/CrossInitialization; arXiv 2312.15905",
        ),
        Method(
            "dreambooth", "DreamBooth", (6e-5, 2e-4, 6e-4), True, dreambooth, f"{_EXAMPLES}/dreambooth"
        ),
        Method(
            "lora", "DreamBooth LoRA", (1.5e-3, 5e-3, 1.5e-2), True, dreambooth_lora,
            f"{_EXAMPLES}/dreambooth, train_dreambooth_lora.py",
        ),
        Method(
            "custom", "Custom Diffusion", (2e-4, 8e-4, 3e-3), True, custom_diffusion,
            f"{_EXAMPLES}/custom_diffusion",
        ),
    )
}  # fmt: skip
