"""basis train: a model's mapper from faces to coefficients, trained on a folder of photos."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import CliConsole
from .loading import choose_model, progress_bar


def train(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Photos of many people, one in each; subfolders are included.", metavar="FOLDER")
    ],
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.", show_default="2400")] = None,
    people: Annotated[
        int | None, typer.Option("--people", help="At most so many photos, chosen at random.", show_default="all")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where Ctrl-C stopped.")] = False,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Same seed, same mapper.")] = 0,
    model: options.Model = None,
    face_models: options.FaceModels = None,
    device: options.Device = None,
    low_memory: options.LowMemory = False,
    force: options.Force = False,
) -> None:
    """Train the mapper that `learn` starts from and `learn --instant` uses alone.

    Needs photos only, of several hundred people or more. Some of them are held out for validation.
    """
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    with requires_extra("learn", "training a mapper"):
        from celebctl.mapper_training.run import MapperRunOptions, mapper_config, train_mapper

        config, run = mapper_config(seed, steps), MapperRunOptions(people, resume, force, low_memory)
        chosen = choose_model(Settings.read(), Library(), model, device, face_models)
        try:
            with progress_bar(console, "training a mapper") as progress:
                result = train_mapper(chosen, folder, config, run, progress)
        except KeyboardInterrupt:
            console.info("stopped; encoded photos and the last checkpoint are kept")
            words = [word for word in console.argv if word != "--resume"]
            console.suggest(shlex.join(["celebctl", *words, "--resume"]), "continue with")
            raise
    console.info("learning uses it from now on; delete the file to undo that")
    console.output([str(result.path)], {"mapper": str(result.path), **result.facts, "skipped": result.skipped})
    console.suggest("celebctl learn face.jpg --name alice --instant")
