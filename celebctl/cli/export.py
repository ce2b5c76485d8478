"""export: a model and the people you know, as a bundle that runs without torch."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import engines, options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import IdentityFile, Library
    from celebctl_runtime.bundle.bundle import Bundle


def export(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="Whom to put in.", metavar="[NAME...]", show_default="everybody")
    ] = None,
    model: options.Model = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to, instead of the library.")] = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", help="Add somebody to an existing bundle; takes milliseconds.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Take somebody out of an existing bundle.")
    ] = None,
    bundle: options.BundleDir = None,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32 or fp16.")] = "fp32",
    spare_rows: Annotated[
        int | None,
        typer.Option("--spare-rows", help="Room for people, two rows each.", show_default="for 128 people or more"),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines for this machine's GPU as well.")] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="With --trt, a size to be fast at: pictures x height x width.", metavar="BxHxW"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --trt, only show what would be built.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only ask TensorRT about a bundle's graphs.")] = False,
) -> None:
    """Make a bundle of a model and your people; or, with --add and --remove, change who is in one."""
    from celebctl.library import Library
    from celebctl.settings import Settings
    from celebctl_runtime.errors import UsageError

    console = ctx.ensure_object(CliConsole)
    library = Library()
    chosen = str(Settings.read().text("model", model))
    if dtype not in ("fp32", "fp16"):
        raise UsageError(f"--dtype {dtype} is none", "use fp32 or fp16")
    if add or remove:
        if names or out:
            raise UsageError("--add and --remove change a bundle in place", "leave out the other names and --out")
        change_people(console, library, chosen, bundle, add or [], remove or [])
    elif (engine or dry_run) and not trt:
        raise UsageError("--engine and --dry-run are about TensorRT", "add --trt")
    elif check:
        engines.check(console, engines.open_place(library, chosen, bundle))
    elif dry_run:
        engines.show_plan(console, library, engines.open_place(library, chosen, bundle), engine or [])
    elif bundle is not None and trt:
        opened = engines.open_place(library, chosen, bundle)
        console.output(
            [str(bundle)], {**_facts(opened, bundle), "engines": engines.build(console, library, opened, engine or [])}
        )
    elif bundle is not None:
        raise UsageError(
            "--bundle goes with --add, --remove, --trt and --check", "to write a bundle somewhere else, use --out DIR"
        )
    else:
        sizes = (engine or []) if trt else None
        make_bundle(console, library, chosen, names=names, out=out, dtype=dtype, spare_rows=spare_rows, engine_sizes=sizes)


def make_bundle(
    console: CliConsole,
    library: "Library",
    model: str,
    *,
    names: list[str] | None = None,
    out: Path | None = None,
    dtype: str = "fp32",
    spare_rows: int | None = None,
    answer: bool = True,
    engine_sizes: list[str] | None = None,
) -> Path:
    """Export a bundle and say so; `answer` is False where it is a step on the way to another result.

    `engine_sizes`: sizes to build TensorRT engines for, native when empty; None for no engines.
    """
    from celebctl.library import format_model_key

    from .extras import requires_extra
    from .naming import listed, prompt_idea

    started = time.monotonic()
    with requires_extra("export", "exporting"), console.status(f"exporting {model}") as say:
        import torch

        from celebctl_export import SPARE_ROWS, export_bundle
        from celebctl_models.checkpoints.diffusion import load_parts

        say("opening the model")
        # in the dtype that is written: an XL model leaves no room for a second copy of itself
        parts = load_parts(model, dtype=torch.float16 if dtype == "fp16" else None)
        model_key = format_model_key(parts.family, parts.table_hash)
        people = _chosen(library, model_key, names)
        place = out or library.bundle_path(parts.name, parts.table_hash)
        bundle = export_bundle(
            parts,
            [entry.load() for entry in people],
            place,
            spare_rows=spare_rows if spare_rows is not None else max(SPARE_ROWS, 4 * len(people)),
            dtype="fp16" if dtype == "fp16" else "fp32",
            average=_average(console, library, parts),
            on_stage=say,
        )
    if out is None:
        library.remember_origin(place, model)
    seconds = time.monotonic() - started
    who = [entry.name for entry in people]
    console.info(f"exported {parts.name} with {listed(who) or 'nobody'} ({_megabytes(place)} MB, {seconds:.1f} s)")
    facts = {**_facts(bundle, place), "seconds": round(seconds, 3)}
    if engine_sizes is not None:
        facts["engines"] = engines.build(console, library, bundle, engine_sizes)
    if answer:
        console.output([str(place)], facts)
        console.suggest(f'celebctl gen "{prompt_idea(who)}"' + (f" --bundle {out}" if out else ""))
    return place


def change_people(
    console: CliConsole, library: "Library", model: str, given: Path | None, add: list[str], remove: list[str]
) -> None:
    """Add and remove people in an existing bundle. No graph is touched and torch is not needed."""
    from celebctl_runtime.bundle.bundle import Bundle
    from celebctl_runtime.errors import NotFoundError

    from celebctl.bundles import add_people, find_bundle, model_key_of
    from .naming import listed, prompt_idea

    place = given or find_bundle(library, model)
    if place is None:
        raise NotFoundError(f"there is no bundle of {model} yet", "make one: celebctl export")
    bundle = Bundle.open(place, verify="quick")
    incoming = [library.load(name, model_key_of(bundle)) for name in dict.fromkeys(add)]
    unknown = [name for name in remove if name not in bundle.manifest.identities]
    if unknown:
        inside = listed(sorted(bundle.manifest.identities)) or "nobody"
        raise NotFoundError(f"{unknown[0]} is not in {place}", f"in it: {inside}")
    for name in dict.fromkeys(remove):
        bundle.remove(name)
    add_people(bundle, incoming)
    console.info(f"in it now: {listed(sorted(bundle.manifest.identities)) or 'nobody'}")
    console.output([str(place)], _facts(bundle, place))
    console.suggest(f'celebctl gen "{prompt_idea(sorted(bundle.manifest.identities))}"')


def _average(console: CliConsole, library: "Library", parts: Any) -> Any:
    """The average celebrity's token rows, for `gen --likeness`; None, and a note, where there is no basis to be had."""
    from celebctl_runtime.errors import CelebctlError

    from celebctl.basis.basis import build_basis
    from celebctl.basis.report import chosen_names

    try:
        return build_basis(parts, library.cache(), names=chosen_names(library, parts).file).mean
    except CelebctlError as problem:
        console.warn(f"{problem.problem}; gen --likeness will not work with this bundle")
        return None


def _chosen(library: "Library", model_key: str, names: list[str] | None) -> "list[IdentityFile]":
    if names:
        return [library.find(name, model_key) for name in dict.fromkeys(names)]
    return library.entries(model_key)


def _facts(bundle: "Bundle", place: Path) -> dict[str, object]:
    model = bundle.manifest.model
    return {
        "path": str(place),
        "model": {"name": model.name, "family": model.family, "table_hash": model.table_hash},
        "people": sorted(bundle.manifest.identities),
    }


def _megabytes(place: Path) -> str:
    return f"{sum(path.stat().st_size for path in place.rglob('*') if path.is_file()) / 1e6:.1f}"
