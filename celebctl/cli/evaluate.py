"""eval: how well are people drawn, measured by networks that learning never uses?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from . import options
from .console import CliConsole
from .evaluation_session import EvalContext, LibraryEvaluation, WorldEvaluation

if TYPE_CHECKING:
    from celebctl.evaluation.html_report import Group
    from celebctl.evaluation.metrics import CohortMetrics
    from celebctl.learning.config import LearnConfig
    from celebctl.settings import Settings


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
    """Measure likeness, obedience and bleeding, and write a table and a page. After Ctrl-C the same command goes on."""
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import check_installed, requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    check_words(names or [], photos, [*(["--preset"] if preset else []), *(["--set"] if changes else [])])
    check_installed("eval", "evaluation", "jinja2", "matplotlib", "scipy")
    with requires_extra("learn", "evaluation"):
        config = configure(settings, preset, changes or [])
        room = EvalContext.open(console, settings, library, (model, face_models, judge, device), clip)
        plan, told = room.plan(prompts, seeds, alone=len(names or []) == 1)
        if names:
            session: LibraryEvaluation | WorldEvaluation = LibraryEvaluation(room, plan, names, photos or Path())
        else:
            session = WorldEvaluation(room, plan, config, people, together, celebrities)
        session.open(out, told, force)
        try:
            groups = session.run()
        except KeyboardInterrupt:
            console.info("stopped; who is finished is kept, and the same command goes on")
            raise
    close(console, out, groups, room.about(plan, told))


def check_words(names: Sequence[str], photos: Path | None, learning: Sequence[str]) -> None:
    """Refuse what does not go together. Raises UsageError."""
    from celebctl_runtime.errors import UsageError

    if names and photos is None:
        raise UsageError("people of the library are compared with their photos", "say where they lie: --photos DIR")
    if photos is not None and not names:
        raise UsageError("--photos goes with names", "say who: celebctl eval alice bob --photos DIR")
    if names and learning:
        hint = "learn them again with it, and evaluate after"
        raise UsageError(f"{' and '.join(learning)} would change how people were learned already", hint)
    if len(set(names)) < len(names):
        raise UsageError("somebody is named twice", "name everybody once")


def configure(settings: "Settings", preset: str | None, changes: Sequence[str]) -> "LearnConfig":
    """The preset with FIELD=VALUE on top. Raises UsageError for a field or value that there is not."""
    from celebctl.learning.config import PRESETS

    config = PRESETS[str(settings.text("preset", preset))]
    for change in changes:
        config = changed(config, change)
    return config


def changed(config: "LearnConfig", change: str) -> "LearnConfig":
    """One FIELD=VALUE on top of a configuration. Raises UsageError."""
    from celebctl.learning.config import LearnConfig
    from celebctl_runtime.errors import UsageError

    kinds = get_type_hints(LearnConfig)
    field, equals, value = change.partition("=")
    if not equals or field not in kinds or field == "preset":
        known = ", ".join(name for name in kinds if name != "preset")
        raise UsageError(f"--set {change} names no value of learning", f"write FIELD=VALUE; fields are {known}")
    choices = get_args(kinds[field])
    if choices and value not in choices:
        raise UsageError(f"--set {change} is not possible", f"{field} is one of {', '.join(choices)}")
    words: dict[str, Any] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        chosen: Any = words[value.lower()] if kinds[field] is bool else value if choices else kinds[field](value)
    except (ValueError, KeyError):
        hint = f"{field} is of the kind of {getattr(config, field)}"
        raise UsageError(f"--set {change} is not possible", hint) from None
    return replace(config, **{field: chosen})


def close(console: CliConsole, out: Path, groups: "Sequence[Group]", about: dict[str, str]) -> None:
    """Write page and document, and say the figures."""
    import json

    from celebctl.evaluation.html_report import write_page
    from celebctl.evaluation.report import category_rows, markdown, rows_of
    from celebctl_runtime.files import atomic_write

    counted: list[CohortMetrics] = [group.figures for group in groups]
    people = len(groups[0].records)
    title = f"{people} {'person' if people == 1 else 'people'} in {about['model']}"
    line = f"{about['prompts']}; pictures of each: {about['pictures of each']}; judged by {about['judges']}"
    page, document = out / "report.html", out / "report.json"
    atomic_write(page, write_page(title, line, groups, about).encode())
    figures = [one.to_json() for one in counted]
    atomic_write(document, (json.dumps({"settings": about, "casts": figures}, indent=1) + "\n").encode())
    tables = [rows_of(counted), category_rows(counted)]
    lines = [line for head, cells in tables for line in [*markdown(head, cells), ""]]

    def show() -> None:
        for head, cells in tables:
            console.table("", head, cells)
        console.info(f"page: {page}")

    console.output_table(
        [*lines, str(page)], {"page": str(page), "report": str(document), "settings": about, "casts": figures}, show
    )
