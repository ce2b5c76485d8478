"""use: which model is meant when none is named, and which ones have a name."""

from typing import TYPE_CHECKING, Annotated

import typer

from .console import CliConsole

if TYPE_CHECKING:
    from celebctl_models.checkpoints.registry import Location


COLUMNS = ("name", "what", "download", "GPU memory", "state", "licence")


def use(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="Known name, diffusers folder, .safetensors or hub id.", show_default="show the present one"
        ),
    ] = None,
) -> None:
    """Set the model that commands take when --model is not given; without a name, show it and those there are."""
    console = ctx.ensure_object(CliConsole)
    if model is None:
        _show(console)
    else:
        _set(console, model)


def _show(console: CliConsole) -> None:
    from celebctl.settings import Settings

    present = Settings.read().get("model")
    models = known_models()
    shown = ("name", "about", "size", "learns_in", "state", "licence")
    rows = [tuple(str(m[key]) for key in shown) for m in models]
    lines = [f"model: {present.value}", f"origin: {present.origin}", *("\t".join(row) for row in (COLUMNS, *rows))]

    def table() -> None:
        console.table("", COLUMNS, rows)
        console.info(f"in use: {present.value} ({present.origin})")

    console.output_table(lines, {"model": present.value, "origin": present.origin, "known": models}, table)


def known_models() -> list[dict[str, object]]:
    """The table of known models with what this machine has of each."""
    from rich.filesize import decimal

    from celebctl_models.checkpoints.known_models import KNOWN
    from celebctl_models.checkpoints.registry import locate

    return [
        {
            "name": name,
            "about": row.title,
            "source": row.source,
            "revision": row.revision,
            "size": decimal(row.size) if row.size else "none",
            "bytes": row.size,
            "memory": {"foretold": True, "four_views": row.memory[0], "low_memory": row.memory[1]},
            "learns_in": f"from {decimal(row.memory[1])}" if row.memory[1] else "any",
            "state": "bundled" if row.bundled else "here" if locate(name).kind == "folder" else "not here",
            "licence": row.licence.name,
            "family": row.family,
            "native_size": row.native_size,
            "prediction": row.prediction,
            "defaults": row.defaults,
            "gated": row.gated,
            "face_models": row.face_pack,
            "note": row.note,
        }
        for name, row in KNOWN.items()
    ]


def _set(console: CliConsole, model: str) -> None:
    from celebctl.library import origin_of
    from celebctl.settings import Settings, save_setting
    from celebctl_models.checkpoints.registry import locate

    place = locate(model)
    value = origin_of(model)
    file = save_setting("model", value)
    console.info(f"{value} is the model from now on")
    winner = Settings.read().get("model")
    if winner.value != value:
        console.warn(f"here {winner.origin} says {winner.value}, and that goes before {file}")
    console.output([value], {"model": value, "path": str(file), "here": place.kind != "hub"})
    console.suggest(_next_step(value, place))


def _next_step(model: str, place: "Location") -> str:
    """What is missing before a photo can be learned, as a command."""
    from celebctl.settings import Settings
    from celebctl_models.faces.packs import DEFAULT_PACK, PACKS, choose_face_models
    from celebctl_runtime.errors import CelebctlError
    from celebctl_runtime.paths import data_root

    if place.kind == "hub":
        return f"celebctl setup {model}"
    said = Settings.read().text("face_models")
    try:
        choose_face_models(said, model, data_root())
    except CelebctlError:
        return f"celebctl setup {said if said in PACKS else DEFAULT_PACK}"
    return "celebctl learn face.jpg --name alice"
