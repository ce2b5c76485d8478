"""export: a model and learned people as a bundle that runs without torch."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

import typer

from . import engines, options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import IdentityFile, Library
    from celebctl.model import BundleOptions, Model
    from celebctl_models.checkpoints.lora import Lora
    from celebctl_runtime.bundle.bundle import Bundle

Dtype = Literal["fp32", "fp16"]


def export(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(help="People to include.", metavar="[NAME...]", show_default="all")
    ] = None,
    model: options.Model = None,
    prediction: options.Prediction = None,
    zero_snr: options.ZeroSnr = None,
    clip_skip: options.ClipSkip = None,
    vae: options.Vae = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the bundle, instead of the library.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", help="Add a person to an existing bundle; takes milliseconds.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Remove a person from an existing bundle.")
    ] = None,
    bundle: options.BundleDir = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of UNet and VAE: fp32 or fp16.")] = "fp32",
    spare_rows: Annotated[
        int | None,
        typer.Option(
            "--spare-rows", help="Token rows reserved for people, two each.", show_default="for 128 people or more"
        ),
    ] = None,
    tiny_vae: Annotated[
        Path | None,
        typer.Option(
            "--tiny-vae",
            help="A tiny autoencoder (TAESD) in place of the model's own: a diffusers folder, or a file"
            " NAME_decoder.safetensors with its encoder beside it.",
            metavar="FOLDER|FILE",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            help="A LoRA to add to the bundle's weights, as a .safetensors file of kohya's trainers or diffusers, and"
            " how much of it: -4 to 4, 1 if left out. Repeat for several. Such a bundle has a folder of its own.",
            metavar="FILE[:WEIGHT]",
        ),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Also build TensorRT engines for this machine's GPU.")] = False,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="With --trt: a size to optimise for, batch x height x width.", metavar="BxHxW"),
    ] = None,
    no_dynamic: Annotated[
        bool, typer.Option("--no-dynamic", help="With --trt: no engines for the sizes around the native one.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", help="With --trt: the GPU; trt:1 is the second one.", show_default="trt"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --trt: only show what would be built.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only list graph nodes without a CUDA kernel, or that TensorRT rejects.")
    ] = False,
) -> None:
    """Export a model and people as a bundle; or change the people of one (--add, --remove)."""
    from celebctl.library import Library
    from celebctl.model import Model
    from celebctl.settings import Settings
    from celebctl_models.checkpoints.checkpoint_options import CheckpointOptions

    console, library = ctx.ensure_object(CliConsole), Library()
    model = str(Settings.read().text("model", model))
    check_options(ctx.params)
    wanted = engines.Wanted(engine or [], not no_dynamic, engines.trt_device(device))
    if add or remove or check or dry_run or bundle is not None:
        opened = engines.open_bundle(library, model, bundle)
        if add or remove:
            change_people(console, library, opened, add or [], remove or [])
        elif check:
            engines.check(console, opened)
        elif dry_run:
            engines.show_plan(console, library, opened, wanted)
        else:
            built = engines.build(console, library, opened, wanted)
            console.output([str(bundle)], {**_facts(opened), "engines": built})
        return
    started, known = time.monotonic(), checked_dtype(dtype)
    checkpoint = CheckpointOptions(prediction, zero_snr, clip_skip, vae)
    chosen = Model.load(model, library=library, options=checkpoint)
    loras = [parse_lora(text) for text in lora or ()]
    bundle_options: BundleOptions = {"dtype": known, "spare_rows": spare_rows, "tiny_vae": tiny_vae, "loras": loras}
    made = make_bundle(console, chosen, out=out, names=names, **bundle_options)
    facts = {**_facts(made), "seconds": round(time.monotonic() - started, 3)}
    if trt:
        facts["engines"] = engines.build(console, library, made, wanted)
    console.output([str(made.path)], facts)
    _suggest(console, made, made.path if loras else out)


def parse_lora(text: str) -> "Lora":
    """FILE or FILE:WEIGHT. Raises UsageError for a weight that is no number or out of range."""
    from celebctl_models.checkpoints.lora import Lora
    from celebctl_runtime.errors import UsageError

    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_file() or text.endswith(".safetensors"):
        return Lora(Path(text))
    try:
        return Lora(Path(file), float(weight))
    except ValueError:
        problem = f"the weight {weight!r} of {file} is not a number"
        raise UsageError(problem, "write --lora FILE:0.8", reason="lora_weight_range", path=file) from None


def check_options(given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that exclude one another. given: parameters by name, None or False if left out."""
    from celebctl_runtime.errors import UsageError

    def any_of(*names: str) -> bool:
        return any(given[name] for name in names)

    if any_of("add", "remove") and any_of("names", "out"):
        raise UsageError("--add and --remove change an existing bundle", "omit the other names and --out")
    if any_of("engine", "dry_run", "no_dynamic", "device") and not given["trt"]:
        raise UsageError("--engine, --no-dynamic, --device and --dry-run need --trt", "add --trt")
    if given["tiny_vae"] and given["vae"]:
        raise UsageError("--vae and --tiny-vae exclude each other", "give one of them: a bundle has one autoencoder")
    if given["tiny_vae"] and any_of("add", "remove", "check", "dry_run", "bundle"):
        raise UsageError("--tiny-vae is for a new bundle", "omit --add, --remove, --bundle, --check and --dry-run")
    if given["lora"] and any_of("add", "remove", "check", "dry_run", "bundle"):
        raise UsageError("--lora is for a new bundle", "omit --add, --remove, --bundle, --check and --dry-run")
    if given["bundle"] and not any_of("add", "remove", "trt", "check"):
        hint = "to write a bundle to another folder, use --out DIR"
        raise UsageError("--bundle needs --add, --remove, --trt or --check", hint)


def make_bundle(
    console: CliConsole,
    model: "Model",
    *,
    names: Sequence[str] | None = None,
    out: Path | None = None,
    **bundle_options: "Unpack[BundleOptions]",
) -> "Bundle":
    """Export a bundle of these people, or of all, to `out` or the model's library."""
    from celebctl.bundles import refuse_other_models
    from celebctl_models.checkpoints.lora import check_loras

    from .extras import requires_extra
    from .naming import listed

    started, library = time.monotonic(), model.library
    with requires_extra("export", "exporting"), console.status(f"exporting {model.source}") as report:
        report("loading the model")
        refuse_other_models(library, names or (), model.key, model.tables.all_rows)
        people = [entry.load() for entry in _chosen(library, model.key, names)]
        loras = bundle_options.get("loras", ())
        check_loras(loras)
        path = out or library.bundle_path(model.name, model.tables.table_hash, [lora.info for lora in loras])
        bundle = model.export(
            path, people, overwrite=True, progress=lambda progress: report(progress.stage), **bundle_options
        )
    if out is None:
        library.remember_origin(path, model.source)
    who, seconds = listed([person.name for person in people]) or "no people", time.monotonic() - started
    console.info(f"exported {model.name} with {who} ({_megabytes(path)} MB, {seconds:.1f} s)")
    for lora in bundle.manifest.loras:
        console.info(f"with the LoRA {lora.file} at weight {lora.weight:g}")
    return bundle


def change_people(
    console: CliConsole, library: "Library", bundle: "Bundle", add: Sequence[str], remove: Sequence[str]
) -> None:
    """Add and remove people of an existing bundle, without torch."""
    from celebctl.bundles import add_people, model_key_of, refuse_other_models
    from celebctl_runtime.errors import NotFoundError

    from .naming import listed

    refuse_other_models(library, add, model_key_of(bundle), bundle.vocabularies)
    new = [library.load(name, model_key_of(bundle)) for name in dict.fromkeys(add)]
    for name in remove:
        if name not in bundle.names:
            hint = f"people in it: {listed(sorted(bundle.names)) or 'none'}"
            raise NotFoundError(f"{name} is not in {bundle.path}", hint, reason="not_in_bundle", name=name)
    for name in dict.fromkeys(remove):
        bundle.remove(name)
    add_people(bundle, new)
    console.info(f"people in the bundle: {listed(sorted(bundle.names)) or 'none'}")
    console.output([str(bundle.path)], _facts(bundle))
    _suggest(console, bundle)


def checked_dtype(dtype: str) -> Dtype:
    """Raise UsageError for a dtype that `export` does not write."""
    from celebctl_runtime.errors import UsageError

    for known in ("fp32", "fp16"):
        if dtype == known:
            return known
    raise UsageError(f"unknown dtype {dtype!r}", "use --dtype fp32 or fp16", reason="unknown_dtype", dtype=dtype)


def _suggest(console: CliConsole, bundle: "Bundle", out: Path | None = None) -> None:
    from .naming import prompt_idea

    console.suggest(
        f'celebctl gen "{prompt_idea(sorted(bundle.names))}"' + (f" --bundle {shlex.quote(str(out))}" if out else "")
    )


def _chosen(library: "Library", model_key: str, names: Sequence[str] | None) -> "list[IdentityFile]":
    if names:
        return [library.find(name, model_key) for name in dict.fromkeys(names)]
    return library.entries(model_key)


def _facts(bundle: "Bundle") -> dict[str, object]:
    model = bundle.manifest.model
    return {
        "path": str(bundle.path),
        "model": {"name": model.name, "family": model.family, "table_hash": model.table_hash},
        "people": sorted(bundle.names),
        "loras": [asdict(lora) for lora in bundle.manifest.loras],
    }


def _megabytes(path: Path) -> str:
    return f"{sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e6:.1f}"
