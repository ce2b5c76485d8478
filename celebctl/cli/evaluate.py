"""eval: how well are people generated, scored by networks that learning never uses?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from . import options
from .console import CliConsole
from .loading import choose_model

if TYPE_CHECKING:
    from celebctl.evaluation.metrics import CohortResult
    from celebctl.evaluation.session import EvalContext, LibraryEvaluation
    from celebctl.learning.config import LearnConfig
    from celebctl.library import Library
    from celebctl.model import Model
    from celebctl.settings import Settings


def evaluate(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Learned people; none: unseen people of the model's own world.", metavar="NAME..."),
    ] = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", help="Folder with the photos of these people: NAME.jpg.", metavar="DIR")
    ] = None,
    people: Annotated[int, typer.Option("--people", help="Number of unseen people.", min=2, max=500)] = 12,
    seeds: Annotated[int, typer.Option("--seeds", help="Images per prompt.", min=1, max=64)] = 2,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="How unseen people are learned: clean or faithful.", show_default="clean"),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the preset.", metavar="FIELD=VALUE")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Unseen people learned in one call.", min=1, max=64)
    ] = 8,
    celebrities: Annotated[
        bool, typer.Option("--celebrities/--no-celebrities", help="Also evaluate the model's own celebrities.")
    ] = True,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Other prompts: one per line, or a .toml.", metavar="FILE")
    ] = None,
    clip: Annotated[
        Path | None, typer.Option("--clip", help="A CLIP model, for prompt fidelity.", metavar="DIR")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="Face models that score identity: not those of learning.", metavar="PACK|DIR"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; finished people are not repeated.", metavar="DIR")
    ] = Path("celebctl-eval"),
    force: options.Force = False,
    model: options.Model = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
) -> None:
    """Measure likeness, prompt fidelity and identity leakage; write a table and a page.

    After Ctrl-C, the same command continues.
    """
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import check_installed, requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    check_options(names or [], photos, [*(["--preset"] if preset else []), *(["--set"] if changes else [])])
    check_installed("eval", "evaluation", "jinja2", "matplotlib", "scipy")
    with requires_extra("learn", "evaluation"):
        from celebctl.evaluation.session import WorldEvaluation

        learning = configure(settings, preset, changes or [])
        context = _open(console, choose_model(settings, library, model, device, face_models), judge, clip)
        config = context.configure(prompts, seeds, with_pairs=len(names or []) != 1)
        if names:
            session: LibraryEvaluation | WorldEvaluation = _library_evaluation(
                context, config, library, names, photos or Path()
            )
        else:
            session = WorldEvaluation(context, config, learning, people, batch_size, celebrities)
        try:
            with console.progress("evaluating") as report:
                results = session.run(out, overwrite=force, progress=lambda p: report(p.step, p.total, p.stage))
        except KeyboardInterrupt:
            console.info("stopped; finished people are kept, and the same command continues")
            raise
    _output(console, results, out, session.settings())


def _open(console: CliConsole, model: "Model", judge: str | None, clip: Path | None) -> "EvalContext":
    """The loaded model and its scorer."""
    from celebctl.evaluation.session import EvalContext, choose_scorer
    from celebctl_models.faces.packs import choose_face_models

    with console.status(f"loading {model.name}"):
        model.prepare()
    recogniser = None if judge is None else choose_face_models(judge, model.source, model.library.root)
    return EvalContext(model, choose_scorer(model.parts, model.analyser, recogniser, clip), clip)


def _library_evaluation(
    context: "EvalContext", config: Any, library: "Library", names: Sequence[str], photos: Path
) -> "LibraryEvaluation":
    from celebctl.evaluation.session import LibraryEvaluation, find_photo
    from celebctl.library import format_model_key
    from celebctl_models.faces.photos import open_photo

    model_key = format_model_key(context.parts.family, context.parts.table_hash)
    entries = [library.find(name, model_key) for name in names]
    return LibraryEvaluation(
        context,
        config,
        [entry.load() for entry in entries],
        [open_photo(find_photo(photos, entry.name)) for entry in entries],
        [entry.path.stat().st_size for entry in entries],
    )


def check_options(names: Sequence[str], photos: Path | None, learning: Sequence[str]) -> None:
    """Raise UsageError for options that do not go together. learning: options about learning that were given."""
    from celebctl_runtime.errors import UsageError

    if names and photos is None:
        raise UsageError("learned people are compared with their photos", "say where they are: --photos DIR")
    if photos is not None and not names:
        raise UsageError("--photos needs names of learned people", "for example: celebctl eval alice bob --photos DIR")
    if names and learning:
        hint = "learn the people again with it, then evaluate them"
        raise UsageError(f"{' and '.join(learning)} cannot change people who are learned already", hint)
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise UsageError(f"{', '.join(repeated)} is given twice", "give each name once")


def configure(settings: "Settings", preset: str | None, changes: Sequence[str]) -> "LearnConfig":
    """The preset with FIELD=VALUE on top. Raises UsageError for an unknown field or an invalid value."""
    from celebctl.learning.config import PRESETS

    config = PRESETS[str(settings.text("preset", preset))]
    for change in changes:
        config = changed(config, change)
    return config


def changed(config: "LearnConfig", change: str) -> "LearnConfig":
    """One FIELD=VALUE on top of a configuration. Raises UsageError."""
    from celebctl.learning.config import LearnConfig
    from celebctl_runtime.errors import UsageError

    types = get_type_hints(LearnConfig)
    field, equals, text = change.partition("=")
    if not equals or field not in types or field == "preset":
        fields = ", ".join(name for name in types if name != "preset")
        raise UsageError(f"--set {change!r} does not name a field", f"write FIELD=VALUE; fields are {fields}")
    choices = get_args(types[field])
    if choices and text not in choices:
        raise UsageError(f"invalid --set {change!r}", f"{field} is one of {', '.join(choices)}")
    flags: dict[str, Any] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        value: Any = flags[text.lower()] if types[field] is bool else text if choices else types[field](text)
    except (ValueError, KeyError):
        hint = f"{field} is a {types[field].__name__}, by default {getattr(config, field)}"
        raise UsageError(f"invalid --set {change!r}", hint) from None
    return replace(config, **{field: value})


def _output(console: CliConsole, results: "Sequence[CohortResult]", out: Path, settings: Mapping[str, Any]) -> None:
    """Write the report and print its tables."""
    from celebctl.evaluation.report import category_table, markdown, report_document, summary_table, write_report

    page, document = write_report(results, out, settings)
    metrics = [result.metrics for result in results]
    tables = [summary_table(metrics), category_table(metrics)]
    lines = [line for headings, rows in tables for line in [*markdown(headings, rows), ""]]

    def show() -> None:
        for headings, rows in tables:
            console.table("", headings, rows)
        console.info(f"page: {page}")

    paths = {"page": str(page), "report": str(document)}
    console.output_table([*lines, str(page)], {**paths, **report_document(results, settings)}, show)
