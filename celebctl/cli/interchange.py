"""export-embedding, import and inspect: identities to other programs, and back."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from . import options
from .console import CliConsole

if TYPE_CHECKING:
    from celebctl.library import Library
    from celebctl.textual_inversion import EmbeddingFile
    from celebctl_runtime.identity import Identity

# How to use a file: {path}, the file's {stem}, and the person's {name}.
USES = {
    "diffusers": 'pipe.load_textual_inversion("{path}"), and write <{name}> in the prompt',
    "webui": "put it into embeddings/ and write {stem} in the prompt",
    "comfyui": "put it into models/embeddings/ and write embedding:{stem} in the prompt",
    "invoke": "add it in the model manager and write <{stem}> in the prompt",
}
# diffusers has one call for each text encoder, and takes the tensors instead of the file.
_USE_XL = (
    'tensors = safetensors.torch.load_file("{path}"), then pipe.load_textual_inversion(tensors["clip_l"],'
    ' token="<{name}>") and pipe.load_textual_inversion(tensors["clip_g"], token="<{name}>",'
    " text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)"
)
_USE_SD3 = "not known to load embeddings for Stable Diffusion 3, unlike ComfyUI: --to comfyui"
# Names that programs give to files and tokens; they do not identify a person.
_GENERIC_NAMES = re.compile(
    r"\W*|learned_embeds.*|emb_params|clip_[lg]|(id_)?(embedding|coefficient|embed)s?([-_].*)?|celeb_basis.*|model"
)


def export_embedding(
    ctx: typer.Context,
    name: options.Person,
    to: Annotated[str, typer.Option("--to", help="Program: diffusers, webui, comfyui or invoke.")] = "webui",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File or folder.", show_default="./NAME.safetensors")
    ] = None,
    model_key: options.ForModel = None,
    force: options.Force = False,
) -> None:
    """Write a person as a textual inversion, for other programs that run the same model."""
    from celebctl.library import Library
    from celebctl.textual_inversion import FAMILIES, format_widths, save_textual_inversion

    from .naming import names_folder

    console = ctx.ensure_object(CliConsole)
    identity = Library().load(name, model_key)
    path = out or Path()
    if names_folder(path):
        path = path / f"{identity.name}.safetensors"
    save_textual_inversion(identity, path, to, overwrite=force)
    widths = tuple(array.shape[1] for array in identity.embeddings)
    if to != "diffusers" and widths not in FAMILIES:
        console.warn(
            f"{to} supports the widths of Stable Diffusion only; those of {identity.name} are {format_widths(widths)}"
        )
    use = _USE_XL if to == "diffusers" and len(widths) > 1 else USES[to]
    use = _USE_SD3 if identity.family == "sd3" and to != "comfyui" else use
    console.info(f"in {to}: {use.format(path=path, stem=path.stem, name=identity.name)}")
    facts = {"path": str(path), "to": to, "name": identity.name, "family": identity.family, "widths": list(widths)}
    console.output([str(path)], facts)


def import_person(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A textual inversion, an identity, or a .pt of the release.", metavar="FILE")
    ],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name of the person.", show_default="the one in the file")
    ] = None,
    model: options.Model = None,
    basis: Annotated[
        Path | None, typer.Option("--basis", help="The celeb_basis.pt of a file of coefficients.", metavar="FILE")
    ] = None,
    which: Annotated[
        int | None, typer.Option("--which", help="The person to import, from 1, when a file holds several.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Import a person: a textual inversion of two vectors, an identity, or a file of the Celeb Basis release."""
    from celebctl.library import Library
    from celebctl.settings import Settings

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    library = Library()
    with requires_extra("learn", "importing a person"):
        from celebctl.textual_inversion import load_textual_inversion, read_contents

        contents = read_contents(file)
        name = name_for(name, contents, file)
        if contents.identity is not None:
            identity = _checked_identity(contents.identity.renamed(name), file, model)
        else:
            chosen = str(Settings.read().text("model", model))
            with console.status(f"importing {name} for {chosen}"):
                identity = load_textual_inversion(
                    file, chosen, name=name, which=which, basis=basis, cache=library.cache()
                )
    path = library.save(identity, overwrite=force)
    _finish(console, library, identity, path, contents.layout)


def inspect_file(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="Files, bundles or model folders.", metavar="FILE...")],
) -> None:
    """Describe files: identities and embeddings in any format, bundles, images with a recipe. Runs no code from them.

    Reads the recipes of celebctl, Stable Diffusion web UIs and InvokeAI, and the prompts in those of ComfyUI.
    """
    from .extras import requires_extra
    from .naming import one_line

    console = ctx.ensure_object(CliConsole)
    with requires_extra("learn", "reading a .pt file"):
        from celebctl.file_info import describe

        described = [describe(file) for file in files]
    document = described[0] if len(files) == 1 else {"files": described}
    tables = [[(key, _as_text(value)) for key, value in facts.items() if key != "warnings"] for facts in described]
    lines = "\n\n".join("\n".join(f"{key}: {value}" for key, value in rows) for rows in tables).split("\n")

    def show() -> None:
        for file, rows in zip(files, tables, strict=True):
            console.table(file.name, ("property", "value"), rows)

    console.output_table(lines, document, show)
    for facts in described:
        prefix = "" if len(files) == 1 else f"{facts['path']}: "
        for warning in cast("list[str]", facts.get("warnings", [])):
            console.warn(prefix + one_line(warning))


def name_for(given: str | None, contents: "EmbeddingFile", file: Path) -> str:
    """The name of an imported person: `given`, the name in the file, or the file's own name.

    Raises UsageError when none of them can be used.
    """
    from celebctl_runtime.errors import UsageError

    from .naming import name_from_text, name_person

    if given is not None:
        return name_person(given)
    if contents.identity is not None:
        return contents.identity.name
    inner, outer = contents.name.strip("<>"), file.stem
    # The web UI calls an embedding of its own training by the file, which may have been renamed since.
    found = (outer, inner) if contents.layout == "string_to_param" else (inner, outer)
    for candidate in (contents.origin.get("name", ""), *found):
        name = None if _GENERIC_NAMES.fullmatch(candidate.casefold()) else name_from_text(candidate)
        if name is not None:
            return name
    raise UsageError(f"cannot derive a name from {file}", "pass a name", reason="no_name_in_embedding", path=file)


def _checked_identity(identity: "Identity", file: Path, model: str | None) -> "Identity":
    """The identity. Raises IntegrityError when it was learned for another model than the one asked for."""
    from celebctl.library import format_model_key
    from celebctl_runtime.errors import IntegrityError

    if model is not None:
        from celebctl_models.checkpoints.text_encoders import load_texts

        parts = load_texts(model)
        if parts.table_hash != identity.table_hash:
            theirs, ours = (format_model_key(one.family, one.table_hash) for one in (identity, parts))
            raise IntegrityError(
                f"{file} was learned for another model ({theirs}) than {model} ({ours})",
                "leave out --model to import it for its own model, or learn the person again for this one",
            )
    return identity


def _finish(console: CliConsole, library: "Library", identity: "Identity", path: Path, layout: str) -> None:
    """Add the person to the model's bundles, and print the result."""
    from celebctl.bundles import add_people, bundles_of
    from celebctl.library import format_model_key
    from celebctl_runtime.errors import CelebctlError

    from .hints import hint_for
    from .naming import prompt_idea

    model_key = format_model_key(identity.family, identity.table_hash)
    bundles = bundles_of(library, model_key)
    for bundle in bundles:
        try:
            add_people(bundle, [identity])
        except CelebctlError as error:  # the person is saved; a full or locked bundle must not undo that
            console.warn(f"not added to the bundle: {error.problem} ({hint_for(error)})")
    console.info(f"imported {identity.name} for {model_key}")
    facts = {
        "name": identity.name,
        "path": str(path),
        "model_key": model_key,
        "format": layout,
        "digest": identity.digest,
        "provenance": dict(identity.provenance),
    }
    console.output([str(path)], facts)
    console.suggest(f'celebctl gen "{prompt_idea([identity.name])}"' if bundles else "celebctl export")


def _as_text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_as_text(entry)}" for key, entry in cast("Mapping[str, object]", value).items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_as_text(entry) for entry in cast("Sequence[object]", value))
    from .naming import one_line

    return one_line(str(value))
