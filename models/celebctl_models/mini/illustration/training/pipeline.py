"""The stages in order. Each is a cached property that asks for what it needs, so any of them can be run alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from celebctl_models.mini.illustration.scenes import Scenes, choose
from celebctl_models.mini.training.assemble import save_diffusion, save_faces
from celebctl_models.mini.training.denoiser import CHANNELS as DENOISER_CHANNELS
from celebctl_models.mini.training.networks import Detector
from celebctl_models.mini.training.trainer import TrainingContext

from . import assemble, autoencoder, denoiser, detection, latent_reader, mapper_data, readers, recognition, text
from .data import Drawn, NamedScenes, Population, UnnamedScenes, car_names, load_drawn, named_scenes, paint, people_book
from .data import statements as stated_by
from .networks import LatentReader
from .subjects import Subjects, cars_of, people_of

#: Shares of the whole time. Those of the autoencoder and of the denoiser are what pictures look like.
SHARES: dict[str, float] = {
    "autoencoder": 0.22, "text": 0.03, "latent_reader": 0.05, "denoiser": 0.46, "recogniser": 0.05, "detector": 0.02,
    "judge": 0.03, "features": 0.04, "car_features": 0.02, "attributes": 0.03, "car_recogniser": 0.03,
    "car_detector": 0.02,
}  # fmt: skip
STAGES: tuple[str, ...] = (*SHARES, "assemble", "mapper")
#: What must have been trained before a stage can be run alone.
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SHARES, ("autoencoder",)),
    "autoencoder": (),
    "text": (),
    "denoiser": ("autoencoder", "text", "latent_reader"),
    "assemble": tuple(SHARES),
    "mapper": tuple(SHARES),
}
#: Seeds of the populations of unnamed people and cars; no two stages that judge each other share one.
RECOGNISER_SEED, JUDGE_SEED, FEATURES_SEED, CARS_SEED = 71, 72, 74, 76
_NAMED_SEED, _STATEMENTS_SEED = 30_241, 30_242


@dataclass(frozen=True)
class Scale:
    """How much is drawn and how large batches and networks are.

    Attributes:
        named: Scenes for the denoiser (8 KB each).
        unnamed: Scenes for the latent reader (8 KB each).
        pixels: Scenes for each population of recognisers, detectors and readers (49 KB each).
        people: Identities of such a population.
        autoencoder_batch, text_batch, denoiser_batch, batch, detector_batch: Scenes, captions, latents, crops or
            latents, pictures a step.
        denoiser_rate: Its highest learning rate.
        autoencoder_channels, denoiser_channels: Block widths.
        code_steps: Steps of the autoencoder in which the code is given.
    """

    named: int = 65_536
    unnamed: int = 32_768
    pixels: int = 12_288
    people: int = 3_600
    autoencoder_batch: int = 4
    text_batch: int = 160
    denoiser_batch: int = 32
    batch: int = 128
    detector_batch: int = 48
    denoiser_rate: float = 7e-4
    autoencoder_channels: tuple[int, ...] = autoencoder.CHANNELS
    code_steps: int = 500
    denoiser_channels: tuple[int, int] = DENOISER_CHANNELS


CPU_SCALE = Scale()
GPU_SCALE = Scale(
    named=393_216, unnamed=131_072, pixels=49_152, people=8_000, autoencoder_batch=64, text_batch=512,
    denoiser_batch=512, batch=512, detector_batch=256, denoiser_rate=1.2e-3,
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One training: where, how much, minutes by name of the stage, processes for portraits."""

    run: TrainingContext
    scale: Scale
    minutes: dict[str, float]
    out: Path
    workers: int = 1

    @cached_property
    def stages(self) -> dict[str, Callable[[], object]]:
        """What runs each stage, in order."""
        return {
            "autoencoder": lambda: self.autoencoder, "text": lambda: self.text,
            "latent_reader": lambda: self.latent_reader, "denoiser": lambda: self.denoiser,
            "recogniser": lambda: self.recogniser, "detector": lambda: self.detector, "judge": lambda: self.judge,
            "features": lambda: self.features, "car_features": lambda: self.car_features,
            "attributes": lambda: self.attributes, "car_recogniser": lambda: self.car_recogniser,
            "car_detector": lambda: self.car_detector, "assemble": self.assemble, "mapper": self.mapper_data,
        }  # fmt: skip

    @cached_property
    def autoencoder(self) -> Any:
        """The AutoencoderKL with standardised latents."""
        scale = self.scale
        options = autoencoder.AutoencoderOptions(
            self.minutes["autoencoder"], scale.autoencoder_batch, scale.autoencoder_channels, scale.code_steps
        )
        return autoencoder.train(self.run, options)

    @cached_property
    def text(self) -> tuple[Any, Any, text.TextHeads]:
        """Tokenizer, text encoder, heads."""
        return text.train(self.run, self.minutes["text"], self.scale.text_batch)

    def _drawn(self, name: str, scenes: Scenes, *, keep_pixels: bool) -> Drawn:
        """Pixels or latents; they belong to this very autoencoder, so its mark is in the folder's name."""
        weight: Tensor = self.autoencoder.quant_conv.weight
        mark = hashlib.sha256(weight.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()[:8]
        painter = partial(paint, self.run, vae=self.autoencoder, keep_pixels=keep_pixels)
        return load_drawn(self.run, f"{name}-{mark}", scenes, painter)

    def _population(self, seed: int) -> Population:
        return Population.of(seed, self.scale.people, self.scale.people)

    def _unnamed(self, name: str, seed: int) -> tuple[Population, UnnamedScenes, Drawn]:
        population, count = self._population(seed), self.scale.pixels
        unnamed = population.scenes(count, 1000 + seed)
        return population, unnamed, self._drawn(f"pictures-{name}", unnamed.scenes, keep_pixels=True)

    @cached_property
    def latent_reader(self) -> LatentReader:
        """The reader of latents."""
        sizes = latent_reader.PEOPLE_COUNT, latent_reader.CARS_COUNT
        population = Population.of(latent_reader.POPULATION, *sizes)
        unnamed = population.scenes(self.scale.unnamed, 1000 + latent_reader.POPULATION)
        drawn = self._drawn("latents-unnamed", unnamed.scenes, keep_pixels=False)
        return latent_reader.train(self.run, unnamed, drawn, self.minutes["latent_reader"], self.scale.batch)

    @cached_property
    def denoiser(self) -> Any:
        """The UNet2DConditionModel."""
        scale = self.scale
        named = named_scenes(scale.named, _NAMED_SEED + self.run.seed)
        drawn = self._drawn("latents-named", named.scenes, keep_pixels=False)
        tokenizer, model, _ = self.text
        data = denoiser.DenoiserData(named, drawn, tokenizer, model, self.latent_reader)
        options = denoiser.DenoiserOptions(
            self.minutes["denoiser"], scale.denoiser_batch, scale.denoiser_rate, scale.denoiser_channels
        )
        return denoiser.train(self.run, data, options)

    @cached_property
    def recogniser_pictures(self) -> tuple[Population, UnnamedScenes, Drawn]:
        """Pictures that the recogniser and the detectors learn from."""
        return self._unnamed("recogniser", RECOGNISER_SEED)

    @cached_property
    def recogniser_people(self) -> Subjects:
        """The people in these pictures."""
        population, unnamed, drawn = self.recogniser_pictures
        return people_of(unnamed, drawn, population.people)

    @cached_property
    def judge_people(self) -> Subjects:
        """People the judge learns from."""
        population, unnamed, drawn = self._unnamed("judge", JUDGE_SEED)
        return people_of(unnamed, drawn, population.people)

    def _cars(self, name: str, seed: int, count: int) -> Subjects:
        """Cars in pictures that all show one, alone or beside one or two people."""
        population = Population.of(seed, self.scale.people, max(2, self.scale.people // 2))
        people = choose(torch.Generator().manual_seed(seed), [0.5, 0.3, 0.2], count)
        unnamed = population.scenes(count, 1000 + seed, (people, torch.ones(count, dtype=torch.bool)))
        drawn = self._drawn(f"pictures-{name}", unnamed.scenes, keep_pixels=True)
        return cars_of(unnamed, drawn, population.cars)

    @cached_property
    def cars(self) -> Subjects:
        """Cars that recogniser, detector and reader of cars learn from."""
        return self._cars("cars", CARS_SEED, self.scale.pixels)

    @cached_property
    def recogniser(self) -> nn.Module:
        """The recogniser of people."""
        options = recognition.RecogniserOptions("recogniser", 5, self.minutes["recogniser"], self.scale.batch)
        return recognition.train(self.run, self.recogniser_people, self.judge_people, options)

    @cached_property
    def judge(self) -> nn.Module:
        """The second recogniser, which only scores."""
        options = recognition.RecogniserOptions("judge", 6, self.minutes["judge"], self.scale.batch, judge=True)
        return recognition.train(self.run, self.judge_people, self.recogniser_people, options)

    @cached_property
    def car_recogniser(self) -> nn.Module:
        """The recogniser of cars."""
        held_out = self._cars("cars-held-out", CARS_SEED + 1, max(2, self.scale.pixels // 6))
        options = recognition.RecogniserOptions("car_recogniser", 7, self.minutes["car_recogniser"], self.scale.batch)
        return recognition.train(self.run, self.cars, held_out, options)

    @cached_property
    def detector(self) -> Detector:
        """The detector of faces."""
        schedule = self.minutes["detector"], self.scale.detector_batch
        return detection.train(self.run, self.recogniser_people, "detector", 8, schedule)

    @cached_property
    def car_detector(self) -> Detector:
        """The detector of cars, which also learns from pictures without one."""
        population, unnamed, drawn = self.recogniser_pictures
        mixed = cars_of(unnamed, drawn, population.cars)
        schedule = self.minutes["car_detector"], self.scale.detector_batch
        return detection.train(self.run, mixed, "car_detector", 9, schedule)

    @cached_property
    def features(self) -> nn.Module:
        """The reader of people's features, of people that no other network knows."""
        population, unnamed, drawn = self._unnamed("features", FEATURES_SEED)
        data = readers.feature_data(people_of(unnamed, drawn, population.people), cars=False)
        return readers.train(self.run, data, "features", 10, (self.minutes["features"], self.scale.batch))

    @cached_property
    def car_features(self) -> nn.Module:
        """The reader of cars' features."""
        data = readers.feature_data(self.cars, cars=True)
        return readers.train(self.run, data, "car_features", 11, (self.minutes["car_features"], self.scale.batch))

    @cached_property
    def attributes(self) -> nn.Module:
        """The reader of what pictures state."""
        named: NamedScenes = named_scenes(self.scale.pixels, _STATEMENTS_SEED + self.run.seed)
        drawn = self._drawn("pictures-named", named.scenes, keep_pixels=True)
        data = readers.statement_data(drawn.pixels, stated_by(named.scenes))
        return readers.train(self.run, data, "attributes", 12, (self.minutes["attributes"], self.scale.batch))

    def assemble(self) -> None:
        """Write the model folder but for the mapper, and print what it weighs."""
        tokenizer, model, _ = self.text
        networks: tuple[nn.Module, ...] = (
            self.recogniser, self.detector, self.judge, self.attributes, self.features, self.car_features,
            self.car_recogniser, self.car_detector,
        )  # fmt: skip
        for network in networks:
            network.cpu()  # where they are exported
        save_diffusion(self.out, self.autoencoder, model, self.denoiser, tokenizer)
        save_faces(self.out / "faces", self.recogniser, self.detector)
        assemble.save_scoring(self.out / "scoring", self.judge, self.attributes, (self.features, self.car_features))
        concept = self.out / "concepts" / "car"
        assemble.save_concept(concept, self.car_recogniser, self.car_detector, car_names(), "car")
        assemble.save_card(self.out, people_book())
        self.run.say(assemble.size_report(self.out))

    def mapper_data(self, count: int = mapper_data.COUNT) -> Path:
        """What the mapper learns from, as the assembled folder's networks see it; people of the latent reader's."""
        factors = Population.of(latent_reader.POPULATION, count, 1).people
        heads = {name: value.cpu() for name, value in self.text[2].state_dict().items()}
        return mapper_data.write(self.run, self.out / "faces", factors, heads, self.workers)
