"""basis: the celebrities' names behind a model's celeb basis, which of them count, and what the basis looks like."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from celebctl_runtime.errors import NotFoundError, UsageError
from celebctl_runtime.files import refuse_existing

from . import options
from .basis_train import train
from .celebrity_renders import measure_faces, render
from .console import CliConsole
from .loading import open_model, open_tables

if TYPE_CHECKING:
    from celebctl.basis.basis import CelebBasis
    from celebctl.basis.names import ChosenNames, NameReport
    from celebctl.basis.spectrum import Spectrum
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.token_tables import TokenTables

SHOWN = 5  # names told as examples for each reason
WORK = "celeb-basis"  # what is locked while a basis is being built

app = typer.Typer(
    help="The celeb basis of a model: which names it is made of, and what it looks like.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(train)

Preset = Annotated[
    str | None,
    typer.Option("--preset", help="clean, or faithful to the published release.", show_default="clean"),
]


@app.command()
def show(
    ctx: typer.Context,
    model: options.Model = None,
    preset: Preset = None,
    picture: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw the spectrum into this .png, .jpg or .webp.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Names used and left out, rank, explained variance and hash of a model's celeb basis."""
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import check_installed, requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if picture is not None:
        check_picture(picture, force)
        check_installed("eval", "drawing the spectrum", "matplotlib")
    release = str(settings.text("preset", preset)) == "faithful"
    with requires_extra("learn", "the celeb basis"):
        view = look_at(open_tables(console, settings, model), library, release)
        if picture is not None:
            save_picture(view, picture)
    if picture is not None:
        console.info(f"the spectrum is drawn in {picture}")
    facts = {**view.facts, **({"picture": str(picture)} if picture else {})}
    rows = view.rows + ([("picture", str(picture))] if picture else [])
    console.output_table(
        [f"{key}: {value}" for key, value in rows],
        facts,
        lambda: console.table(f"celeb basis of {view.parts.name}", ("what", "value"), rows),
    )


@app.command()
def build(
    ctx: typer.Context,
    names: Annotated[
        Path | None,
        typer.Option("--names", help='A text file with one "first last" a line.', show_default="the model's own"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check-by-rendering", help="Draw every name; keep those the model has a face for.")
    ] = False,
    faces: Annotated[
        bool,
        typer.Option("--faces", help="Draw every name, and let learning start from what they look like."),
    ] = False,
    model: options.Model = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    force: options.Force = False,
) -> None:
    """Choose the names behind a model's celeb basis and build it. People learned from now on use it.

    Drawing every name means thousands of pictures: how long it takes is said, and it goes on where it was stopped.
    """
    from celebctl.basis.names import read_name_list
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    settings, library = Settings.read(), Library()
    if names is not None:
        read_name_list(names)  # what is wrong with it is said before anything slow begins
    measured: Path | None = None
    with requires_extra("learn", "the celeb basis"):
        if check or faces:
            parts = open_model(console, str(settings.text("model", model)), str(settings.text("device", device)))
        else:
            parts = open_tables(console, settings, model)
        bench, choice = BasisContext(settings, library, parts, face_models), choice_for(library, parts)
        with library.reserve([WORK], choice.model_key):
            if faces:
                refuse_needless(parts, choice.file or names, force)
            if names is not None or check or not faces:
                settle(console, bench, choice, names, check, force)
            view = look_at(parts, library, release=False)
            if faces:
                measured = measure_faces(console, bench, choice.file)
    for line in view.told:
        console.info(line)
    facts = {**view.facts, **({"faces": str(measured)} if measured else {})}
    console.output([str(view.facts["file"]), *([str(measured)] if measured else [])], facts)
    console.suggest(f"celebctl basis show{'' if model is None else f' --model {model}'} -o spectrum.png")


@dataclass(frozen=True)
class BasisContext:
    """What building a basis works with. parts: all of the model where names are drawn."""

    settings: "Settings"
    library: "Library"
    parts: "TokenTables"
    face_models: str | None


@dataclass(frozen=True)
class View:
    """A basis to show. told: the report on its names as talk."""

    parts: "TokenTables"
    basis: "CelebBasis"
    spectra: "tuple[tuple[Spectrum, ...], ...]"
    facts: dict[str, Any]
    rows: list[tuple[str, str]]
    told: list[str]


def refuse_needless(parts: "TokenTables", chosen: Path | None, force: bool) -> None:
    """Raise UsageError when learning would not start from measured faces: the model brings something better."""
    card = parts.card
    if not force and ((card.mapper_file is not None and chosen is None) or card.features_file is not None):
        raise UsageError(
            f"{parts.name} brings along what learning starts from, so measured faces would not be used",
            "--force measures them all the same",
        )


def choice_for(library: "Library", parts: "TokenTables") -> "ChosenNames":
    """The names chosen for a model, or the place for them."""
    from celebctl.basis.names import ChosenNames
    from celebctl.library import format_model_key

    return ChosenNames(library.root, format_model_key(parts.family, parts.table_hash))


def basis_of(library: "Library", parts: "TokenTables") -> "CelebBasis":
    """A model's celeb basis, of the names chosen for it. Raises InvalidInputError when they are too few."""
    from celebctl.basis.basis import build_basis
    from celebctl.basis.names import with_names

    return build_basis(with_names(parts, choice_for(library, parts).file), library.cache())


def settle(console: CliConsole, bench: BasisContext, choice: "ChosenNames", names: Path | None, check: bool, force: bool) -> None:
    """Decide on the list for this model and keep the decision, once it is known that a basis can be made of it.

    Raises UsageError when another list was chosen already and `force` is not given.
    """
    from celebctl.basis.names import names_file, read_name_list

    source = names_file(bench.parts, names)
    listed = read_name_list(source)
    same = names is not None and not check and choice.file is not None and read_name_list(choice.file) == listed
    if choice.file is not None and not same and not force:
        raise UsageError(
            f"other names were chosen for this model already: {choice.path}",
            "replace them with --force; people you have learned keep what they were learned with",
        )
    if names is None and not check:
        choice.remove()
        return
    reports: list[NameReport] = []
    if check:
        listed, reports = drop_unseen(console, bench, listed)
    try_out(bench, listed)
    choice.save(listed, source, reports)


def try_out(bench: BasisContext, names: Sequence[str]) -> None:
    """Build and cache the basis of a list that is not yet chosen. Raises InvalidInputError when it does not suffice."""
    from tempfile import TemporaryDirectory

    from celebctl.basis.basis import build_basis
    from celebctl.basis.names import with_names

    with TemporaryDirectory() as folder:
        path = Path(folder) / "names.txt"
        path.write_text("\n".join(names), encoding="utf-8")
        build_basis(with_names(bench.parts, path), bench.library.cache())


def drop_unseen(console: CliConsole, bench: BasisContext, names: Sequence[str]) -> "tuple[list[str], list[NameReport]]":
    """The names that the model draws a face of its own for, and the report on both filters for each tokenizer."""
    from celebctl.basis.name_filtering import judge_names
    from celebctl.basis.names import name_report, shared_pairs

    pairs = shared_pairs(bench.parts.tokenizers, names)
    verdict = judge_names(render(console, bench, pairs[0].names))
    return list(verdict.kept), [name_report(names, one).without(verdict.dropped) for one in pairs]


def look_at(parts: "TokenTables", library: "Library", release: bool) -> View:
    """Build the basis, or take it from the cache, and gather what there is to say about it."""
    from celebctl.basis.basis import build_basis
    from celebctl.basis.names import name_report, names_file, read_names, shared_pairs, with_names
    from celebctl.basis.spectrum import spectra_of

    choice = choice_for(library, parts)
    named = with_names(parts, choice.file)
    names = read_names(named)
    basis = build_basis(named, library.cache(), release=release)
    pairs = shared_pairs(parts.tokenizers, names, release=release)
    spectra = spectra_of(parts, pairs, release=release)
    source, reports = choice.story() if choice.file is not None else (names_file(parts), [])
    reports = reports or [name_report(names, one) for one in pairs]
    facts: dict[str, Any] = {
        "model": parts.name,
        "kind": basis.kind,
        "coefficients": basis.size,
        "components": [components.shape[1] for components in basis.components],
        "names_file": str(source),
        "names": [_document(report) for report in reports],
        "positions": _positions(basis, spectra),
        "mapper": mapper_of(named, basis, library.cache()),
        "hash": basis.hash,
        "file": str(cached_file(library.cache(), basis.hash)),
    }
    return View(parts, basis, spectra, facts, _rows(facts), _talk(reports))


def mapper_of(named: "TokenTables", basis: "CelebBasis", cache: Path) -> dict[str, Any] | None:
    """The mapper that learning begins with: trained by this user, else the model's own, else None.

    named: the model with its names settled. The published release's basis has none.
    """
    from celebctl.mapper_training.store import trained_for

    if basis.kind == "release":
        return None
    trained = [{"said": str(one), "file": str(one.path), **one.about} for one in trained_for(cache, basis)]
    own = named.card.mapper_file
    if trained:
        return max(trained, key=lambda one: Path(one["file"]).stat().st_mtime)
    return None if own is None else {"said": "the model's own", "file": str(own)}


def cached_file(cache: Path, wanted: str) -> Path:
    """The file in the cache that holds the basis of this hash, which was just built or read; only headers are read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(cache.glob("basis-*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), cast(Any, safe_open)(str(path), framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("hash") == wanted:
                return path
    raise NotFoundError(f"the celeb basis {wanted[:16]} is no longer in {cache}", "run the same command again")


def check_picture(path: Path, force: bool) -> None:
    """Refuse, before the work, a place where the picture cannot go. Raises UsageError."""
    from .sample_photo import FORMATS

    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path} is no picture file celebctl writes", f"end it in {', '.join(FORMATS)}")
    refuse_existing(path, force)


def save_picture(view: View, path: Path) -> None:
    """Draw the spectrum."""
    from celebctl.basis.spectrum_chart import draw_spectrum
    from celebctl_runtime.files import atomic_write

    kept = " and ".join(f"{count:,}" for count in dict.fromkeys(view.facts["components"]))
    first = view.facts["names"][0]
    said = f"{first['used']:,} of {first['read']:,} names, {kept} components per position"
    drawn = draw_spectrum(view.spectra, f"The celeb basis of {view.parts.name}", said)
    atomic_write(path, drawn.save)


def _document(report: "NameReport") -> dict[str, Any]:
    return {
        "read": report.read,
        "used": report.used,
        "first_token_only": report.first_only,
        "left_out": report.counts(),
        "examples": {reason: list(names[:SHOWN]) for reason, names in report.dropped.items()},
    }


def _positions(basis: "CelebBasis", spectra: "Sequence[Sequence[Spectrum]]") -> list[dict[str, Any]]:
    """What is known of each text encoder and position, as plain numbers."""
    from celebctl.basis.spectrum import POSITIONS, TOLD

    return [
        {
            "text_encoder": encoder + 1,
            "position": POSITIONS[position],
            "tokens": spectrum.tokens,
            "rank": spectrum.rank,
            "explained": {str(count): round(spectrum.explained(count), 6) for count in TOLD},
            "radius": round(float(basis.radius[encoder][position]), 6),
        }
        for encoder, pair in enumerate(spectra)
        for position, spectrum in enumerate(pair)
    ]


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as text, one line each."""
    rows = [(key, str(facts[key])) for key in ("model", "kind", "coefficients", "names_file") if facts[key] is not None]
    for number, report in enumerate(facts["names"], 1):
        which = f" (tokenizer {number})" if len(facts["names"]) > 1 else ""
        rows.append((f"names{which}", f"{report['used']} of {report['read']} used"))
        if report["first_token_only"]:
            rows.append((f"first token only{which}", str(report["first_token_only"])))
        rows += [(f"left out{which}", f"{count}: {why}") for why, count in report["left_out"].items()]
    for one in facts["positions"]:
        which = f" (text encoder {one['text_encoder']})" if facts["positions"][-1]["text_encoder"] > 1 else ""
        shares = ", ".join(f"{float(share):.1%} in {count}" for count, share in one["explained"].items())
        rows.append((f"{one['position']}{which}", f"{one['tokens']} tokens, rank {one['rank']}"))
        rows.append((f"{one['position']} explain{which}", shares))
        rows.append((f"{one['position']} radius{which}", f"{one['radius']:.4f}"))
    mapper = facts["mapper"]
    rows.append(("mapper", f"{mapper['said']}, {mapper['file']}" if mapper else "none"))
    return [*rows, ("hash", str(facts["hash"])), ("file", str(facts["file"]))]


def _talk(reports: "Sequence[NameReport]") -> list[str]:
    """The report on the names, with examples."""
    lines: list[str] = []
    for number, report in enumerate(reports, 1):
        which = f" for tokenizer {number}" if len(reports) > 1 else ""
        lines.append(f"{report.used} of {report.read} names are used{which}")
        for why, count in report.counts().items():
            examples = ", ".join(report.dropped.get(why, ())[:SHOWN])
            lines.append(f"  {count} left out, {why}{f': {examples}' if examples else ''}")
    return lines
