"""export-embedding, import and inspect: people on their way to other programs, and back."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
# diffusers has one call for each text encoder, and wants the tensors rather than the file.
_USE_XL = (
    'tensors = safetensors.torch.load_file("{path}"), then pipe.load_textual_inversion(tensors["clip_l"],'
    ' token="<{name}>") and pipe.load_textual_inversion(tensors["clip_g"], token="<{name}>",'
    " text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)"
)
# Names that programs give to files and tokens; they say nothing about who it is.
_PROGRAMS_OWN = re.compile(
    r"\W*|learned_embeds.*|emb_params|(id_)?(embedding|coefficient|embed)s?([-_].*)?|celeb_basis.*|model"
)
_NONE_KNOWN = "no well-known model has this width"
_Facts = dict[str, object]


def export_embedding(
    ctx: typer.Context,
    name: options.Person,
    to: Annotated[str, typer.Option("--to", help="For diffusers, webui, comfyui or invoke.")] = "webui",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File or folder.", show_default="./NAME.safetensors")
    ] = None,
    model_key: options.ForModel = None,
    force: options.Force = False,
) -> None:
    """Write somebody as a textual inversion, for other programs that run the same model."""
    from celebctl.library import Library
    from celebctl.textual_inversion import FAMILIES, embedding_file, in_words
    from celebctl_runtime.files import atomic_write

    console = ctx.ensure_object(CliConsole)
    identity = Library().load(name, model_key)
    content = embedding_file(identity, to)
    path = _embedding_path(out, identity.name, force)
    atomic_write(path, content)
    widths = tuple(array.shape[1] for array in identity.embeddings)
    if to != "diffusers" and widths not in FAMILIES:
        console.warn(
            f"{to} knows vectors of Stable Diffusion's widths only; those of {identity.name} are {in_words(widths)}"
        )
    use = _USE_XL if to == "diffusers" and len(widths) > 1 else USES[to]
    console.info(f"in {to}: {use.format(path=path, stem=path.stem, name=identity.name)}")
    console.output(
        [str(path)],
        {"path": str(path), "to": to, "name": identity.name, "family": identity.family, "widths": list(widths)},
    )


def import_person(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Textual inversion, identity, or the release's .pt.", metavar="FILE")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Their name.", show_default="the one inside")] = None,
    model: options.Model = None,
    basis: Annotated[
        Path | None, typer.Option("--basis", help="The celeb_basis.pt of a file of coefficients.", metavar="FILE")
    ] = None,
    which: Annotated[
        int | None, typer.Option("--which", help="Which person, from 1, where a file holds several.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Take in somebody from a file: a textual inversion of two vectors, an identity, or what Celeb Basis wrote."""
    from celebctl.library import Library

    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    library = Library()
    with requires_extra("learn", "importing a person"):
        from celebctl.textual_inversion import read_contents

        contents = read_contents(file)
        called = name_for(name, contents, file)
        if contents.identity is not None:
            person = _of_ours(contents.identity.renamed(called), file, model)
        else:
            arrival = ImportedEmbedding(console, library, file, contents)
            person = arrival.settle(called, model, None if basis is None else read_contents(basis), which)
    kept = library.save(person, overwrite=force)
    _close(console, library, person, kept, contents.layout)


def inspect_file(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Any file or bundle.", metavar="FILE")],
) -> None:
    """Say what a file is: people in any format, bundles, pictures with a recipe. Nothing in it is ever run."""
    from .extras import requires_extra

    console = ctx.ensure_object(CliConsole)
    with requires_extra("learn", "looking into a .pt file"):
        facts = describe(file)
    warnings = cast("list[str]", facts.get("warnings", []))
    rows = [(key, _shown(value)) for key, value in facts.items() if key != "warnings"]
    console.output_table(
        [f"{key}: {value}" for key, value in rows], facts, lambda: console.table(file.name, ("what", "value"), rows)
    )
    for warning in warnings:
        console.warn(warning)


# Names and places.


def name_for(given: str | None, contents: "EmbeddingFile", file: Path) -> str:
    """What to call an imported person: what was said, the name inside the file, or the file's own name.

    Raises UsageError when none of them will do.
    """
    from celebctl_runtime.errors import CelebctlError, UsageError

    from .naming import name_from_file, name_person

    if given is not None:
        return name_person(given)
    if contents.identity is not None:
        return contents.identity.name
    for candidate in (contents.origin.get("name", ""), contents.name.strip("<>"), file.stem):
        if _PROGRAMS_OWN.fullmatch(candidate.casefold()):
            continue
        try:
            return name_from_file(candidate)
        except CelebctlError:
            continue
    raise UsageError(
        f"{file} does not say who it is", f"name the person: celebctl import {shlex.quote(str(file))} --name alice"
    )


def _embedding_path(out: Path | None, name: str, force: bool) -> Path:
    from celebctl_runtime.errors import UsageError
    from celebctl_runtime.files import refuse_existing

    path = out or Path()
    if path.is_dir() or not path.suffix:
        path = path / f"{name}.safetensors"
    if path.suffix.lower() != ".safetensors":
        raise UsageError(
            f"{path} is no .safetensors file", f"write -o {path.with_suffix('.safetensors')}, or a folder"
        )
    refuse_existing(path, force)
    return path


# Coming in.


@dataclass(frozen=True)
class ImportedEmbedding:
    """Somebody who was made elsewhere, on the way into the library."""

    console: CliConsole
    library: "Library"
    file: Path
    contents: "EmbeddingFile"

    def settle(self, name: str, model: str | None, basis: "EmbeddingFile | None", which: int | None) -> "Identity":
        """The person as one of the chosen model's. The file is judged before the model is opened."""
        from celebctl.settings import Settings
        from celebctl.textual_inversion import person_of, token_rows

        rows = token_rows(self.contents, self.file, which=which, basis=basis)
        chosen = str(Settings.read().text("model", model))
        with self.console.status(f"opening {chosen}"):
            from celebctl.basis.basis import build_basis
            from celebctl_models.checkpoints.text_encoders import load_texts

            parts = load_texts(chosen)
            person = person_of(
                rows, name, parts, build_basis(parts, self.library.cache()), self._provenance(parts.name)
            )
        made_for = self.contents.origin.get("table_hash", parts.table_hash)
        if made_for != parts.table_hash:
            self.console.warn(
                f"{self.file} was made with another text encoder than that of {parts.name}: they may look different"
            )
        share = float(person.provenance["outside_basis"])
        self.console.info(f"{share:.0%} of {name} lies outside the celeb basis of {parts.name}; nothing of it is lost")
        return person

    def _provenance(self, model: str) -> dict[str, str]:
        from celebctl import __version__
        from celebctl_runtime.files import sha256_file

        return {
            "celebctl": __version__,
            "model": model,
            "origin": "imported",
            "format": self.contents.layout,
            "file_sha256": sha256_file(self.file),
        }


def _of_ours(person: "Identity", file: Path, model: str | None) -> "Identity":
    """An identity goes to the model it was learned for; one that was asked for must be that model."""
    from celebctl.library import format_model_key
    from celebctl_runtime.errors import IntegrityError

    if model is not None:
        from celebctl_models.checkpoints.text_encoders import load_texts

        parts = load_texts(model)
        if parts.table_hash != person.table_hash:
            theirs, ours = (format_model_key(who.family, who.table_hash) for who in (person, parts))
            raise IntegrityError(
                f"{file} is a person of another model ({theirs}) than {model} ({ours})",
                "leave out --model to keep them for their own model, or learn them again for this one",
            )
    return person


def _close(console: CliConsole, library: "Library", person: "Identity", kept: Path, layout: str) -> None:
    """Put the person into the model's bundle when there is one, and say what was done."""
    from celebctl.library import format_model_key
    from celebctl_runtime.errors import CelebctlError

    from .bundles import add_people, bundles_of
    from .naming import prompt_idea

    model_key = format_model_key(person.family, person.table_hash)
    bundles = bundles_of(library, model_key)
    for bundle in bundles:
        try:
            add_people(bundle, [person])
        except CelebctlError as error:  # they are kept; a full or locked bundle must not undo that
            console.warn(f"not in the bundle yet: {error.problem} ({error.hint})")
    console.info(f"{person.name} is known now, for {model_key}")
    console.output(
        [str(kept)],
        {
            "name": person.name,
            "path": str(kept),
            "shelf": model_key,
            "format": layout,
            "digest": person.digest,
            "provenance": dict(person.provenance),
        },
    )
    console.suggest(f'celebctl gen "{prompt_idea([person.name])}"' if bundles else "celebctl export")


# What a file is.


def describe(path: Path) -> _Facts:
    """What is known about a file or folder; "warnings" is a list of sentences.

    Raises NotFoundError when there is none, IntegrityError when it is damaged or would run code.
    """
    from celebctl_runtime.errors import NotFoundError

    if not path.exists():
        raise NotFoundError(f"there is no file {path}", "check the path")
    place: _Facts = {"path": str(path)}
    if path.is_dir() or path.name == "manifest.json":
        return place | _about_folder(path if path.is_dir() else path.parent)
    with path.open("rb") as file:
        if file.read(8) == b"\x89PNG\r\n\x1a\n":
            return place | _about_picture(path)
    return place | _about_tensors(path)


def _about_folder(folder: Path) -> _Facts:
    from celebctl_runtime.bundle.bundle import Bundle

    if (folder / "model_index.json").is_file():
        return {"kind": "model", "format": "diffusers folder", "use": f"celebctl learn face.jpg --model {folder}"}
    if not (folder / "manifest.json").is_file():
        return {"kind": "unknown", "format": "a folder that is neither a bundle nor a model"}
    manifest = Bundle.open(folder, verify="none").manifest
    return {
        "kind": "bundle",
        "format": f"celebctl bundle, version {manifest.schema_version}",
        "model": manifest.model.name,
        "family": manifest.model.family,
        "table_hash": manifest.model.table_hash,
        "dtype": manifest.dtype,
        "people": sorted(manifest.identities),
        "created_by": dict(manifest.created_by),
    }


def _about_picture(path: Path) -> _Facts:
    from celebctl_runtime.errors import InvalidInputError
    from celebctl_runtime.picture import read_request

    try:
        request, record = read_request(path)
    except InvalidInputError:
        return {"kind": "picture", "format": "PNG without a recipe of celebctl"}
    recipe = {key: value for key, value in request.to_json().items() if value not in ("", None)}
    return {"kind": "picture", "format": "PNG with its recipe", **recipe, "made_with": record}


def _about_tensors(path: Path) -> _Facts:
    from celebctl.textual_inversion import read_contents

    contents = read_contents(path)
    facts: _Facts = {"kind": contents.kind, "format": contents.layout}
    if contents.name or contents.origin:
        facts["name"] = contents.origin.get("name") or contents.name
    if contents.dtype:
        facts["dtype"] = contents.dtype
    if len(contents.people) > 1:
        facts["people"] = len(contents.people)
    facts |= _numbers(contents)
    if contents.origin:
        facts["made_for"] = {key: value for key, value in contents.origin.items() if key != "name"}
    if contents.identity is not None:
        facts |= _about_identity(contents.identity)
    return facts | {"warnings": _warnings(contents)}


def _about_identity(identity: "Identity") -> _Facts:
    return {
        "family": identity.family,
        "coefficients": [list(array.shape) for array in identity.coefficients],
        "digest": identity.digest,
        "basis_hash": identity.basis_hash,
        "table_hash": identity.table_hash,
        "provenance": dict(identity.provenance),
    }


def _numbers(contents: "EmbeddingFile") -> _Facts:
    """Shapes and lengths, as they are called for this kind of file."""
    from celebctl.textual_inversion import FAMILIES

    if not contents.people:
        return {}
    first = contents.people[0]
    if contents.kind == "basis":
        shape = first[0].shape
        return {"components": shape[1] - 1, "widths": [shape[2]], "likely_for": FAMILIES.get((shape[2],), _NONE_KNOWN)}
    lengths = [[_length(row) for row in array] for person in contents.people for array in person]
    if contents.kind == "coefficients":
        return {"coefficients": list(first[0].shape), "norms": lengths}
    widths = tuple(array.shape[1] for array in first)
    facts: _Facts = {"vectors": len(first[0]), "widths": list(widths), "norms": lengths}
    if contents.kind == "embedding":  # an identity says it itself
        facts["likely_for"] = FAMILIES.get(widths, _NONE_KNOWN)
    return facts


def _length(row: Any) -> float | None:
    """The Euclidean length to four digits; None where it is no number, for JSON knows no NaN."""
    import numpy as np

    length = float(np.linalg.norm(row))
    return float(f"{length:.4g}") if np.isfinite(length) else None


def _warnings(contents: "EmbeddingFile") -> list[str]:
    """What is wrong or odd about the numbers, a sentence each."""
    from celebctl.textual_inversion import flaws

    found: list[str] = []
    for number, person in enumerate(contents.people, 1):
        who = f"person {number}: " if len(contents.people) > 1 else ""
        for array in person:
            checks = [*flaws(array)] if contents.kind != "basis" else []
            found += [who + sentence for sentence in (*checks, *_scale(contents.kind, array))]
    vectors = {len(array) for person in contents.people for array in person}
    if contents.kind == "embedding" and vectors != {2}:
        found.append(f"celebctl import takes people of two vectors; this has {max(vectors)}")
    return found


def _scale(kind: str, array: Any) -> list[str]:
    """Whether rows are far longer than those they stand among.

    CLIP's token rows start at a standard deviation of 0.02 (initialize_parameters in CLIP's model.py) and stay of that
    order. The release starts its coefficients as unit normal noise, and what it learns is about 1 long.
    """
    import numpy as np

    longest, side = float(np.linalg.norm(array, axis=-1).max()), float(np.sqrt(array.shape[-1]))
    if kind in ("embedding", "identity") and np.isfinite(longest) and longest > 10 * 0.02 * side:
        return [f"a vector is {longest:.3g} long; a text encoder's own words are about {0.02 * side:.1g}"]
    if kind == "coefficients" and np.isfinite(longest) and longest > side / 2:
        return ["the coefficients are as long as the noise that learning starts from: this is likely nobody"]
    return []


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in cast("Mapping[str, object]", value).items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_shown(entry) for entry in cast("Sequence[object]", value))
    return str(value)
