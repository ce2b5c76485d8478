"""eval: how well are people drawn, measured by networks that learning never uses?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from . import options
from .console import Desk

if TYPE_CHECKING:
    from celebctl.evaluation.metrics import Figures
    from celebctl.evaluation.page import Group
    from celebctl.evaluation.panel import Panel
    from celebctl.evaluation.prompts import Prompt
    from celebctl.evaluation.session import Bench, Cast, Easel, Plan
    from celebctl.library import Library
    from celebctl.method import LearnConfig
    from celebctl.settings import Settings
    from celebctl_models.diffusion import DiffusionParts
    from celebctl_models.faces import InsightFaceAnalyser


def evaluate(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="People of your library; none: strangers of the model's own world.", metavar="NAME..."),
    ] = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Where the photos of these people lie: NAME.jpg.", metavar="DIR")
    ] = None,
    people: Annotated[int, typer.Option("--people", help="How many strangers.", min=2, max=500)] = 12,
    seeds: Annotated[int, typer.Option("--seeds", help="Pictures per prompt.", min=1, max=64)] = 2,
    preset: Annotated[
        str | None, typer.Option("--preset", help="How strangers are learned: clean or faithful.", show_default="clean")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the preset.", metavar="FIELD=VALUE")
    ] = None,
    together: Annotated[int, typer.Option("--together", help="Strangers learned in one call.", min=1, max=64)] = 8,
    celebrities: Annotated[
        bool, typer.Option("--celebrities/--no-celebrities", help="Measure the model's own celebrities beside them.")
    ] = True,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Other prompts: one a line, or a .toml.", metavar="FILE")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", help="A CLIP model, to judge prompts by.", metavar="DIR")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Face models to judge by: not those of learning.", metavar="PACK|DIR")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; what is in it is not done again.", metavar="DIR")
    ] = Path("celebctl-eval"),
    force: options.Force = False,
    model: options.Model = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
) -> None:
    """Measure likeness, obedience and bleeding, and write a table and a page. Ctrl-C loses at most one person."""
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import needs

    desk = ctx.ensure_object(Desk)
    settings, library = Settings.read(), Library()
    check_words(names or [], photos, [*(["--preset"] if preset else []), *(["--set"] if changes else [])])
    with needs("learn", "evaluation"):
        config = configure(settings, preset, changes or [])
        room = Room.open(desk, settings, library, (model, face_models, judge, device), clip)
        plan, told = room.plan(prompts, seeds, alone=len(names or []) == 1)
        if names:
            session: LibrarySession | WorldSession = LibrarySession(room, plan, names, photos or Path())
        else:
            session = WorldSession(room, plan, config, people, together, celebrities)
        session.open(out, told, force)
        try:
            groups = session.run()
        except KeyboardInterrupt:
            desk.tell("stopped; who is finished is kept, and the same command goes on")
            raise
    close(desk, out, groups, room.about(plan, told))


def check_words(names: Sequence[str], photos: Path | None, learning: Sequence[str]) -> None:
    """Refuse what does not go together. Raises UsageProblem."""
    from celebctl_runtime.errors import UsageProblem

    if names and photos is None:
        raise UsageProblem("people of the library are compared with their photos", "say where they lie: --photos DIR")
    if photos is not None and not names:
        raise UsageProblem("--photos goes with names", "say who: celebctl eval alice bob --photos DIR")
    if names and learning:
        hint = "learn them again with it, and evaluate after"
        raise UsageProblem(f"{' and '.join(learning)} would change how people were learned already", hint)
    if len(set(names)) < len(names):
        raise UsageProblem("somebody is named twice", "name everybody once")


def configure(settings: "Settings", preset: str | None, changes: Sequence[str]) -> "LearnConfig":
    """The preset with FIELD=VALUE on top. Raises UsageProblem for a field or value that there is not."""
    from celebctl.method import PRESETS

    config = PRESETS[str(settings.text("preset", preset))]
    for change in changes:
        config = changed(config, change)
    return config


def changed(config: "LearnConfig", change: str) -> "LearnConfig":
    """One FIELD=VALUE on top of a configuration. Raises UsageProblem."""
    from celebctl.method import LearnConfig
    from celebctl_runtime.errors import UsageProblem

    kinds = get_type_hints(LearnConfig)
    field, equals, value = change.partition("=")
    if not equals or field not in kinds or field == "preset":
        known = ", ".join(name for name in kinds if name != "preset")
        raise UsageProblem(f"--set {change} names no value of learning", f"write FIELD=VALUE; fields are {known}")
    choices = get_args(kinds[field])
    if choices and value not in choices:
        raise UsageProblem(f"--set {change} is not possible", f"{field} is one of {', '.join(choices)}")
    words: dict[str, Any] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        chosen: Any = words[value.lower()] if kinds[field] is bool else value if choices else kinds[field](value)
    except (ValueError, KeyError):
        hint = f"{field} is of the kind of {getattr(config, field)}"
        raise UsageProblem(f"--set {change} is not possible", hint) from None
    return replace(config, **{field: chosen})


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

        reader = getattr(self.panel, "vocabulary", None)
        wanted: Sequence[Prompt] = WORLD if reader else PHOTOGRAPHS
        if prompts is not None:
            wanted = read_prompts(prompts)
            if reader:
                check_states(wanted, reader, prompts)
        wanted = [prompt for prompt in wanted if not (alone and prompt.category == "pair")]
        said = json.dumps([[p.category, p.text, dict(p.states)] for p in wanted])
        told = {
            "model": self.parts.name, "token table": self.parts.table_hash[:16], "judges": self.panel.names,
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
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


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
        from celebctl_runtime.errors import NotFound

        if not isinstance(self.room.panel, WorldPanel):
            hint = "name people of your library: celebctl eval alice --photos DIR"
            raise NotFound(f"{self.room.parts.name} has no world to draw strangers from", hint)
        told |= {"people": self.people, "learned together": self.together, "learning": asdict(self.config)}
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
        self.easels = [Easel(artist, artist, None, entry.path.stat().st_size) for entry in entries]
        told |= {"people": ", ".join(f"{p.name} {p.digest[:12]}" for p in people)}
        self.bench: Bench = Bench(out, told)
        self.bench.open(force)

    def run(self) -> "list[Group]":
        """Draw and judge."""
        return [measured(self.room.desk, self.bench, self.plan, self.cast, self.easels, "library")]


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

    with desk.progress(f"drawing {cast.title}") as report:
        records = bench.run(plan, cast, lambda person: easels[person], report, folder)
    return Group(figures(cast.title, records, plan.prompts), records)


def close(desk: Desk, out: Path, groups: "Sequence[Group]", about: dict[str, str]) -> None:
    """Write page and document, and say the figures."""
    import json

    from celebctl.evaluation.page import write_page
    from celebctl.evaluation.report import category_rows, markdown, rows_of
    from celebctl_runtime.files import atomic_write

    counted: list[Figures] = [group.figures for group in groups]
    people = len(groups[0].records)
    title = f"{people} {'person' if people == 1 else 'people'} in {about['model']}"
    line = f"{about['prompts']}; {about['pictures of each']} of each; judged by {about['judges']}"
    page, document = out / "report.html", out / "report.json"
    atomic_write(page, write_page(title, line, groups, about).encode())
    figures = [one.to_json() for one in counted]
    atomic_write(document, (json.dumps({"settings": about, "casts": figures}, indent=1) + "\n").encode())
    tables = [rows_of(counted), category_rows(counted)]
    lines = [line for head, cells in tables for line in [*markdown(head, cells), ""]]

    def show() -> None:
        for head, cells in tables:
            desk.table("", head, cells)
        desk.tell(f"page: {page}")

    desk.give_list(
        [*lines, str(page)], {"page": str(page), "report": str(document), "settings": about, "casts": figures}, show
    )
