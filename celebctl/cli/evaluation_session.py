"""What `eval` works with: the open model and its judges, and the two kinds of people that can be measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.evaluation.html_report import Group
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.runner import Cohort, EvalConfig, ResultsStore, SubjectGenerators
    from celebctl.evaluation.scorers import Scorer
    from celebctl.learning.config import LearnConfig
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.diffusion import DiffusionParts
    from celebctl_models.faces.analysis import InsightFaceAnalyser
    from celebctl_runtime.identity import Identity


@dataclass(frozen=True)
class EvalContext:
    """What both uses need: the open model, who finds faces, who judges."""

    console: CliConsole
    library: "Library"
    parts: "DiffusionParts"
    finder: "InsightFaceAnalyser"
    panel: "Scorer"
    clip: Path | None

    @classmethod
    def open(
        cls,
        console: CliConsole,
        settings: "Settings",
        library: "Library",
        said: tuple[str | None, str | None, str | None, str | None],
        clip: Path | None,
    ) -> "EvalContext":
        """Open model and judges. said: --model, --face-models, --judge, --device."""
        from celebctl.learning.device import select_device
        from celebctl_models.checkpoints.diffusion import load_parts
        from celebctl_models.faces.analysis import InsightFaceAnalyser
        from celebctl_models.faces.packs import choose_face_models

        model, face_models, judge, device = said
        chosen = str(settings.text("model", model))
        finder = InsightFaceAnalyser(
            choose_face_models(settings.text("face_models", face_models), chosen, library.root)
        )
        with console.status(f"opening {chosen}"):
            place = select_device(str(settings.text("device", device)))
            parts = load_parts(chosen, dtype=place.dtype, device=place.device)
        folder = None if judge is None else choose_face_models(judge, chosen, library.root)
        return cls(console, library, parts, finder, _panel(console, parts, finder, folder, clip), clip)

    def plan(self, prompts: Path | None, seeds: int, *, alone: bool) -> "tuple[EvalConfig, dict[str, Any]]":
        """What will be drawn, and the settings that decide the numbers. alone: nobody to make a pair with."""
        import hashlib
        import json

        from celebctl.evaluation.prompts import PHOTOGRAPHS, WORLD, check_states, read_prompts
        from celebctl.evaluation.references import draws_mini
        from celebctl.evaluation.runner import EvalConfig

        reader = getattr(self.panel, "vocabulary", None)
        wanted: Sequence[Prompt] = WORLD if reader and draws_mini(self.parts.card) else PHOTOGRAPHS
        if prompts is not None:
            wanted = read_prompts(prompts)
            if reader:
                check_states(wanted, reader, prompts)
        wanted = [prompt for prompt in wanted if not (alone and prompt.category == "pair")]
        said = json.dumps([[p.category, p.text, dict(p.states)] for p in wanted])
        told = {
            "model": self.parts.name, "token table": self.parts.table_hash[:16],
            "weights": self.parts.weights_digest, "judges": self.panel.names,
            "prompts": f"{len(wanted)} ({hashlib.sha256(said.encode()).hexdigest()[:12]})", "pictures of each": seeds,
            "clip": str(self.clip) if self.clip else None,
        }  # fmt: skip
        return EvalConfig(wanted, seeds, self.panel, self.parts.card.class_noun), told

    def about(self, plan: "EvalConfig", told: dict[str, Any]) -> dict[str, str]:
        """The settings as the page shows them."""
        shown = {name: _in_words(value) for name, value in told.items() if value is not None}
        return {
            **shown,
            "prompts": f"{len(plan.prompts)} prompts: " + ", ".join(dict.fromkeys(p.category for p in plan.prompts)),
        }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {said}" for name, said in cast("dict[str, Any]", value).items())
    return str(value)


def _panel(
    console: CliConsole, parts: "DiffusionParts", finder: "InsightFaceAnalyser", judge: Path | None, clip: Path | None
) -> "Scorer":
    from celebctl.evaluation.scorers import PhotoScorer, WorldImageScorer
    from celebctl_models.faces.analysis import InsightFaceAnalyser

    if judge is None and parts.card.scoring_dir is not None:
        if clip is not None:
            console.warn(f"{parts.name} brings its own reader of pictures, which judges prompts; --clip is not used")
        return WorldImageScorer(parts.card.scoring_dir, finder)
    reader = None
    if clip is not None:
        from celebctl.evaluation.clip import ClipScorer

        reader = ClipScorer(clip)
    if judge is None or judge.resolve() == finder.folder.resolve():
        console.warn("the recogniser that learns also judges, which is too kind; give another one: --judge antelopev2")
        return PhotoScorer(finder, finder, reader, circular=True)
    return PhotoScorer(finder, InsightFaceAnalyser(judge), reader, circular=False)


@dataclass
class WorldEvaluation:
    """Strangers of the model's own world, whose true looks are known, and its celebrities beside them."""

    room: EvalContext
    plan: "EvalConfig"
    config: "LearnConfig"
    people: int
    together: int
    celebrities: bool

    def open(self, out: Path, told: dict[str, Any], force: bool) -> None:
        """Make or find the folder. Raises NotFoundError when the model has no world of its own."""
        from celebctl.basis.report import chosen_names
        from celebctl.evaluation.references import draws_mini
        from celebctl.evaluation.runner import ResultsStore
        from celebctl.evaluation.scorers import WorldImageScorer
        from celebctl.learning.prepared import ModelAssets
        from celebctl_runtime.errors import NotFoundError

        if not isinstance(self.room.panel, WorldImageScorer) or not draws_mini(self.room.parts.card):
            hint = "name people of your library: celebctl eval alice --photos DIR"
            raise NotFoundError(f"{self.room.parts.name} has no world to draw strangers from", hint)
        told |= {"people": self.people, "learned together": self.together, "learning": self.config.to_dict()}
        own = chosen_names(self.room.library, self.room.parts).file is None
        told |= {"mapper": (ModelAssets.of(self.room.parts).mapper_digest or None) if own else None}
        self.bench: ResultsStore = ResultsStore(out, told)
        self.bench.open(force)

    def run(self) -> "list[Group]":
        """Learn, draw, judge."""
        from celebctl.evaluation.cohorts import celebrity_cohort, generator_for, unseen_people_cohort
        from celebctl.evaluation.runner import SubjectGenerators, neighbours

        learned = self._learn()
        title = f"unseen people, {self.config.preset}"
        strangers = unseen_people_cohort(self.room.panel, self._seeds(), neighbours(self.people), title)
        artist = generator_for(self.room.parts, [one.identity for one in learned])
        easels = [SubjectGenerators(artist, artist, one.seconds, one.bytes) for one in learned]
        groups = [measured(self.room.console, self.bench, self.plan, strangers, easels, "strangers")]
        if self.celebrities:
            artist = generator_for(self.room.parts, [])
            famous, easels = celebrity_cohort(self.room.panel, self.people), [SubjectGenerators(artist, artist)] * self.people
            groups.append(measured(self.room.console, self.bench, self.plan, famous, easels, "celebrities"))
        return groups

    def _seeds(self) -> list[int]:
        from celebctl.evaluation.cohorts import FIRST_STRANGER

        return [FIRST_STRANGER + i for i in range(self.people)]

    def _learn(self) -> Any:
        from celebctl.basis.report import chosen_names
        from celebctl.evaluation.cohorts import learn_unseen_people
        from celebctl.learning.prepared import prepare

        library, names = self.room.library, chosen_names(self.room.library, self.room.parts).file
        model = prepare(self.room.parts, library.cache(), names=names, release=self.config.names == "release")
        with self.room.console.progress("learning strangers") as report:
            return learn_unseen_people(
                model, self.room.finder, self.config, self._seeds(), self.together, self.bench.folder,
                lambda n, calls, now: report(n * now.total + now.step, calls * now.total, f"call {n + 1} of {calls}"),
            )  # fmt: skip


@dataclass
class LibraryEvaluation:
    """People the user has learned, compared with their photos."""

    room: EvalContext
    plan: "EvalConfig"
    names: Sequence[str]
    photos: Path

    def open(self, out: Path, told: dict[str, Any], force: bool) -> None:
        """Find everybody and their photos, and make or find the folder. Raises NotFoundError for whoever is missing."""
        from celebctl.basis.names import read_names
        from celebctl.basis.report import chosen_names
        from celebctl.evaluation.cohorts import generator_for, library_cohort
        from celebctl.evaluation.runner import ResultsStore, SubjectGenerators
        from celebctl.library import format_model_key
        from celebctl_models.faces.photos import open_photo

        parts = self.room.parts
        model_key = format_model_key(parts.family, parts.table_hash)
        entries = [self.room.library.find(name, model_key) for name in self.names]
        people = [entry.load() for entry in entries]
        files = [photo_of(self.photos, entry.name) for entry in entries]
        pictures = [open_photo(file) for file in files]
        self.cast: Cohort = library_cohort(self.room.panel, people, pictures, read_names(parts, chosen_names(self.room.library, parts).file))
        artist = generator_for(parts, people)
        both = zip(people, entries, strict=True)
        self.easels = [SubjectGenerators(artist, artist, seconds_of(one), entry.path.stat().st_size) for one, entry in both]
        told |= {"people": ", ".join(f"{p.name} {p.digest[:12]}" for p in people)}
        self.bench: ResultsStore = ResultsStore(out, told)
        self.bench.open(force)

    def run(self) -> "list[Group]":
        """Draw and judge."""
        return [measured(self.room.console, self.bench, self.plan, self.cast, self.easels, "library")]


def seconds_of(person: "Identity") -> float | None:
    """Seconds of learning, where they were kept; "12.34", and in older files "12.34 (a person's share of the call)"."""
    try:
        return float(person.provenance["seconds"].split()[0])
    except (KeyError, ValueError, IndexError):
        return None


def photo_of(folder: Path, name: str) -> Path:
    """The photo of somebody in a folder: their name with any ending. Raises NotFoundError."""
    from celebctl_runtime.errors import NotFoundError

    found = sorted(file for file in folder.glob("*") if file.is_file() and file.stem.casefold() == name)
    if not found:
        raise NotFoundError(f"there is no photo of {name} in {folder}", f"put it there as {folder / name}.jpg")
    return found[0]


def measured(console: CliConsole, bench: "ResultsStore", plan: "EvalConfig", cast: "Cohort", easels: "Sequence[SubjectGenerators]", folder: str) -> "Group":
    """A cast drawn, judged and counted, with live progress."""
    from celebctl.evaluation.html_report import Group
    from celebctl.evaluation.metrics import figures

    begun = time.monotonic()
    with console.progress(f"drawing {cast.title}") as report:

        def tell(done: int, people: int, name: str) -> None:
            left = (time.monotonic() - begun) / done * (people - done) if done else 0.0
            report(done, people, f"{name}  {left:.0f} s left" if left else name)

        records = bench.run(plan, cast, lambda person: easels[person], tell, folder)
    return Group(figures(cast.title, records, plan.prompts), records)
