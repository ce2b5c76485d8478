"""What `eval` works with: the open model and its judges, and the two kinds of people that can be measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .console import Desk

if TYPE_CHECKING:
    from celebctl.evaluation.page import Group
    from celebctl.evaluation.panel import Panel
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.session import Bench, Cast, Easel, Plan
    from celebctl.library import Library
    from celebctl.method import LearnConfig
    from celebctl.settings import Settings
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import InsightFaceAnalyser
    from celebctl_runtime.identity import Identity


@dataclass(frozen=True)
class Room:
    """What both uses need: the open model, who finds faces, who judges."""

    desk: Desk
    library: "Library"
    parts: "DiffusionParts"
    finder: "InsightFaceAnalyser"
    panel: "Panel"
    clip: Path | None

    @classmethod
    def open(
        cls,
        desk: Desk,
        settings: "Settings",
        library: "Library",
        said: tuple[str | None, str | None, str | None, str | None],
        clip: Path | None,
    ) -> "Room":
        """Open model and judges. said: --model, --face-models, --judge, --device."""
        from celebctl.library import shelf_name
        from celebctl.method.names import ChosenNames, with_names
        from celebctl.method.places import choose_place
        from celebctl_models.diffusion import load_parts
        from celebctl_models.face_packs import choose_face_models
        from celebctl_models.faces import InsightFaceAnalyser

        model, face_models, judge, device = said
        chosen = str(settings.text("model", model))
        finder = InsightFaceAnalyser(
            choose_face_models(settings.text("face_models", face_models), chosen, library.root)
        )
        with desk.working(f"opening {chosen}"):
            place = choose_place(str(settings.text("device", device)))
            parts = load_parts(chosen, dtype=place.dtype, device=place.device)
        parts = with_names(parts, ChosenNames(library.root, shelf_name(parts.family, parts.table_hash)).file)
        folder = None if judge is None else choose_face_models(judge, chosen, library.root)
        return cls(desk, library, parts, finder, _panel(desk, parts, finder, folder, clip), clip)

    def plan(self, prompts: Path | None, seeds: int, *, alone: bool) -> "tuple[Plan, dict[str, Any]]":
        """What will be drawn, and the settings that decide the numbers. alone: nobody to make a pair with."""
        import hashlib
        import json

        from celebctl.evaluation.prompts import PHOTOGRAPHS, WORLD, check_states, read_prompts
        from celebctl.evaluation.session import Plan
        from celebctl.evaluation.truth import draws_mini

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
        return Plan(wanted, seeds, self.panel, self.parts.card.class_noun), told

    def about(self, plan: "Plan", told: dict[str, Any]) -> dict[str, str]:
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
    desk: Desk, parts: "DiffusionParts", finder: "InsightFaceAnalyser", judge: Path | None, clip: Path | None
) -> "Panel":
    from celebctl.evaluation.panel import PhotoPanel, WorldPanel
    from celebctl_models.faces import InsightFaceAnalyser

    if judge is None and parts.card.scoring_dir is not None:
        if clip is not None:
            desk.note(f"{parts.name} brings its own reader of pictures, which judges prompts; --clip is not used")
        return WorldPanel(parts.card.scoring_dir, finder)
    reader = None
    if clip is not None:
        from celebctl.evaluation.clip import ClipJudge

        reader = ClipJudge(clip)
    if judge is None or judge.resolve() == finder.folder.resolve():
        desk.note("the recogniser that learns also judges, which is too kind; give another one: --judge antelopev2")
        return PhotoPanel(finder, finder, reader, circular=True)
    return PhotoPanel(finder, InsightFaceAnalyser(judge), reader, circular=False)


@dataclass
class WorldSession:
    """Strangers of the model's own world, whose true looks are known, and its celebrities beside them."""

    room: Room
    plan: "Plan"
    config: "LearnConfig"
    people: int
    together: int
    celebrities: bool

    def open(self, out: Path, told: dict[str, Any], force: bool) -> None:
        """Make or find the folder. Raises NotFound when the model has no world of its own."""
        from celebctl.evaluation.panel import WorldPanel
        from celebctl.evaluation.session import Bench
        from celebctl.evaluation.truth import draws_mini
        from celebctl.method.starts import mapper_digest
        from celebctl_runtime.errors import NotFound

        if not isinstance(self.room.panel, WorldPanel) or not draws_mini(self.room.parts.card):
            hint = "name people of your library: celebctl eval alice --photos DIR"
            raise NotFound(f"{self.room.parts.name} has no world to draw strangers from", hint)
        told |= {"people": self.people, "learned together": self.together, "learning": self.config.told()}
        told |= {"mapper": mapper_digest(self.room.parts) or None}
        self.bench: Bench = Bench(out, told)
        self.bench.open(force)

    def run(self) -> "list[Group]":
        """Learn, draw, judge."""
        from celebctl.evaluation.casts import artist_of, celebrity_cast, stranger_cast
        from celebctl.evaluation.session import Easel, neighbours

        learned = self._learn()
        title = f"unseen people, {self.config.preset}"
        strangers = stranger_cast(self.room.panel, self._seeds(), neighbours(self.people), title)
        artist = artist_of(self.room.parts, [one.identity for one in learned])
        easels = [Easel(artist, artist, one.seconds, one.bytes) for one in learned]
        groups = [measured(self.room.desk, self.bench, self.plan, strangers, easels, "strangers")]
        if self.celebrities:
            artist = artist_of(self.room.parts, [])
            famous, easels = celebrity_cast(self.room.panel, self.people), [Easel(artist, artist)] * self.people
            groups.append(measured(self.room.desk, self.bench, self.plan, famous, easels, "celebrities"))
        return groups

    def _seeds(self) -> list[int]:
        from celebctl.evaluation.casts import FIRST_STRANGER

        return [FIRST_STRANGER + i for i in range(self.people)]

    def _learn(self) -> Any:
        from celebctl.evaluation.casts import learn_strangers
        from celebctl.method.basis import build_basis

        basis = build_basis(self.room.parts, self.room.library.cache(), release=self.config.names == "release")
        with self.room.desk.progress("learning strangers") as report:
            return learn_strangers(
                self.room.parts, self.room.finder, self.config, basis, self._seeds(), self.together, self.bench.folder,
                lambda n, calls, now: report(n * now.steps + now.step, calls * now.steps, f"call {n + 1} of {calls}"),
            )  # fmt: skip


@dataclass
class LibrarySession:
    """People the user has learned, compared with their photos."""

    room: Room
    plan: "Plan"
    names: Sequence[str]
    photos: Path

    def open(self, out: Path, told: dict[str, Any], force: bool) -> None:
        """Find everybody and their photos, and make or find the folder. Raises NotFound for whoever is missing."""
        from celebctl.evaluation.casts import artist_of, library_cast
        from celebctl.evaluation.session import Bench, Easel
        from celebctl.library import shelf_name
        from celebctl.method.names import read_names
        from celebctl_models.photos import open_photo

        parts = self.room.parts
        shelf = shelf_name(parts.family, parts.table_hash)
        entries = [self.room.library.find(name, shelf) for name in self.names]
        people = [entry.load() for entry in entries]
        files = [photo_of(self.photos, entry.name) for entry in entries]
        pictures = [open_photo(file, self.room.desk.note) for file in files]
        self.cast: Cast = library_cast(self.room.panel, people, pictures, read_names(parts))
        artist = artist_of(parts, people)
        both = zip(people, entries, strict=True)
        self.easels = [Easel(artist, artist, seconds_of(one), entry.path.stat().st_size) for one, entry in both]
        told |= {"people": ", ".join(f"{p.name} {p.digest[:12]}" for p in people)}
        self.bench: Bench = Bench(out, told)
        self.bench.open(force)

    def run(self) -> "list[Group]":
        """Draw and judge."""
        return [measured(self.room.desk, self.bench, self.plan, self.cast, self.easels, "library")]


def seconds_of(person: "Identity") -> float | None:
    """Seconds of learning, where they were kept; "12.34", and in older files "12.34 (a person's share of the call)"."""
    try:
        return float(person.provenance["seconds"].split()[0])
    except (KeyError, ValueError, IndexError):
        return None


def photo_of(folder: Path, name: str) -> Path:
    """The photo of somebody in a folder: their name with any ending. Raises NotFound."""
    from celebctl_runtime.errors import NotFound

    found = sorted(file for file in folder.glob("*") if file.is_file() and file.stem.casefold() == name)
    if not found:
        raise NotFound(f"there is no photo of {name} in {folder}", f"put it there as {folder / name}.jpg")
    return found[0]


def measured(desk: Desk, bench: "Bench", plan: "Plan", cast: "Cast", easels: "Sequence[Easel]", folder: str) -> "Group":
    """A cast drawn, judged and counted, with live progress."""
    from celebctl.evaluation.metrics import figures
    from celebctl.evaluation.page import Group

    begun = time.monotonic()
    with desk.progress(f"drawing {cast.title}") as report:

        def tell(done: int, people: int, name: str) -> None:
            left = (time.monotonic() - begun) / done * (people - done) if done else 0.0
            report(done, people, f"{name}  {left:.0f} s left" if left else name)

        records = bench.run(plan, cast, lambda person: easels[person], tell, folder)
    return Group(figures(cast.title, records, plan.prompts), records)
