"""The table of commands."""

from typing import Annotated

import typer

from celebctl import __version__

from .basis import app as basis
from .bench import bench
from .check import check
from .default_model import use
from .doctor import doctor
from .download import download
from .evaluate import evaluate
from .export import export
from .gen import gen, regen
from .interchange import export_embedding, import_person, inspect_file
from .learn import learn
from .mix import interpolate, mix
from .people import forget, list_people, rename, show
from .sample import nearest, sample
from .sample_photo import sample_photo

app = typer.Typer(
    help="A person in 1024 numbers: learn a face from one photo, then put it in any picture.",
    epilog="Begin with: celebctl portrait face.jpg; celebctl learn face.jpg --name alice; celebctl gen 'alice smiling'",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"celebctl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No talk, only results, notes and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="With an error, show where it happened.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A person in 1024 numbers: learn a face from one photo, then put it in any picture."""
    del as_json, quiet, debug, version  # read from the words themselves before Typer sees them, so they stand anywhere


MAKE, PEOPLE, MACHINE = "Make", "People you know", "Models and this machine"
app.command("sample-photo", rich_help_panel=MAKE)(sample_photo)
app.command(rich_help_panel=MAKE)(check)
app.command(rich_help_panel=MAKE)(learn)
app.command(rich_help_panel=MAKE)(export)
app.command(rich_help_panel=MAKE)(gen)
app.command(rich_help_panel=MAKE)(regen)
app.command("eval", rich_help_panel=MAKE)(evaluate)
app.command("list", rich_help_panel=PEOPLE)(list_people)
app.command(rich_help_panel=PEOPLE)(show)
app.command(rich_help_panel=PEOPLE)(rename)
app.command("rm", rich_help_panel=PEOPLE)(forget)
app.command(rich_help_panel=PEOPLE)(mix)
app.command(rich_help_panel=PEOPLE)(interpolate)
app.command(rich_help_panel=PEOPLE)(sample)
app.command(rich_help_panel=PEOPLE)(nearest)
app.command("export-embedding", rich_help_panel=PEOPLE)(export_embedding)
app.command("import", rich_help_panel=PEOPLE)(import_person)
app.command("inspect", rich_help_panel=PEOPLE)(inspect_file)
app.command(rich_help_panel=MACHINE)(use)
app.command(rich_help_panel=MACHINE)(download)
app.command(rich_help_panel=MACHINE)(doctor)
app.command(rich_help_panel=MACHINE)(bench)
#: Former names of commands, still valid.
FORMER = {"portrait": sample_photo, "forget": forget, "strip": interpolate, "invent": sample, "setup": download}
for former, command in FORMER.items():
    app.command(former, hidden=True)(command)
app.add_typer(basis, name="basis", rich_help_panel=MACHINE)
