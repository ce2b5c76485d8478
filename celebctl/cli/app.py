"""The table of commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from celebctl import __version__

from .animate import animate
from .basis import app as basis
from .bench import bench
from .check import check
from .default_model import use
from .doctor import doctor
from .download import download
from .edit import edit
from .evaluate import evaluate
from .export import export
from .forget import forget
from .gen import gen, regen
from .grid import grid, sheet
from .interchange import export_embedding, import_person, inspect_file
from .learn import learn
from .mix import interpolate, mix
from .people import list_people, remove, rename, show
from .prove import prove
from .run import run
from .sample import nearest, sample
from .sample_photo import sample_photo
from .verify import verify

app = typer.Typer(
    help="Learn a person from one photo as 1024 numbers, and draw them in any scene.",
    epilog="Start with: celebctl sample-photo face.png; celebctl learn face.png --name alice;"
    " celebctl gen 'alice smiling'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"celebctl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Suppress progress and messages.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Learn a person from one photo as 1024 numbers, and draw them in any scene."""
    del as_json, quiet, debug, version  # CliConsole.from_argv reads them, so that they may stand anywhere


#: Panel of the help -> command name -> function.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Learn and draw": {
        "sample-photo": sample_photo,
        "check": check,
        "learn": learn,
        "export": export,
        "gen": gen,
        "edit": edit,
        "regen": regen,
        "run": run,
        "grid": grid,
        "sheet": sheet,
        "animate": animate,
        "verify": verify,
        "eval": evaluate,
    },
    "Learned people": {
        "list": list_people,
        "show": show,
        "rename": rename,
        "rm": remove,
        "forget": forget,
        "mix": mix,
        "interpolate": interpolate,
        "sample": sample,
        "nearest": nearest,
        "export-embedding": export_embedding,
        "import": import_person,
        "inspect": inspect_file,
    },
    "Models and this machine": {
        "use": use,
        "download": download,
        "doctor": doctor,
        "bench": bench,
        "prove": prove,
    },
}
#: Former names of commands, still valid, hidden in the help -> current names.
FORMER_COMMANDS = {
    "portrait": "sample-photo",
    "strip": "interpolate",
    "invent": "sample",
    "setup": "download",
}
for panel, commands in COMMANDS.items():
    for name, function in commands.items():
        app.command(name, rich_help_panel=panel)(function)
        for former in (old for old, new in FORMER_COMMANDS.items() if new == name):
            app.command(former, hidden=True)(function)
app.add_typer(basis, name="basis", rich_help_panel="Models and this machine")
