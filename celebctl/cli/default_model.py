"""use: the default model, and the table of known models."""

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
            help="Known name, diffusers folder, checkpoint file or Hub id.", show_default="show the current one"
        ),
    ] = None,
) -> None:
    """Set the default model; without a name, show it and the known models."""
    console = ctx.ensure_object(CliConsole)
    if model is None:
        _show(console)
    else:
        _set(console, model)


def _show(console: CliConsole) -> None:
    """Print the default model and the known models."""
    from celebctl.settings import Settings

    current = Settings.read().get("model")
    models = known_models()
    shown = ("name", "about", "size", "learns_in", "state", "licence")
    rows = [tuple(str(m[key]) for key in shown) for m in models]
    lines = [f"model: {current.value}", f"origin: {current.origin}", *("\t".join(row) for row in (COLUMNS, *rows))]

    def table() -> None:
        console.table("", COLUMNS, rows)
        console.info(f"in use: {current.value} ({current.origin})")

    console.output_table(lines, {"model": current.value, "origin": current.origin, "known": models}, table)


def known_models() -> list[dict[str, object]]:
    """The table of known models, with the state of each on this machine."""
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
            "memory": {"estimated": True, "four_views": row.memory[0], "low_memory": row.memory[1]},
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
    """Save the default model."""
    from celebctl.library import origin_of
    from celebctl.settings import Settings, save_setting
    from celebctl_models.checkpoints.registry import locate

    location = locate(model)
    value = origin_of(model)
    file = save_setting("model", value)
    console.info(f"{value} is the default model")
    current = Settings.read().get("model")
    if current.value != value:
        console.warn(f"{current.origin} sets the model {current.value} and overrides {file}")
    console.output([value], {"model": value, "path": str(file), "here": location.kind != "hub"})
    console.suggest(_next_step(value, location))


def _next_step(model: str, location: "Location") -> str:
    """The next command towards learning a photo."""
    from celebctl.settings import Settings
    from celebctl_models.faces.packs import DEFAULT_PACK, PACKS, choose_face_models
    from celebctl_runtime.errors import CelebctlError
    from celebctl_runtime.paths import data_root

    if location.kind == "hub":
        return f"celebctl download {model}"
    face_models = Settings.read().text("face_models")
    try:
        choose_face_models(face_models, model, data_root())
    except CelebctlError:
        return f"celebctl download {face_models if face_models in PACKS else DEFAULT_PACK}"
    return "celebctl learn face.jpg --name alice"
