"""What there is to say about a model's celeb basis: names used and dropped, rank, explained variance, mapper."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celebctl.library import Library, format_model_key
from celebctl.mapper_training.mapper_store import trained_mappers
from celebctl_runtime.errors import NotFoundError

from .basis import CelebBasis, build_basis
from .names import ChosenNames, NameReport, name_report, names_file, read_names, shared_pairs
from .spectrum import POSITIONS, REPORTED, Spectrum, spectra_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from celebctl_models.checkpoints.token_tables import TokenTables

EXAMPLES = 5  # names listed for each reason


@dataclass(frozen=True)
class BasisReport:
    """A basis described.

    Attributes:
        facts: Everything as plain values, for JSON.
        names: What became of the names, for each tokenizer.
        spectra: For each text encoder, one per token position.
    """

    facts: dict[str, Any]
    names: Sequence[NameReport]
    spectra: tuple[tuple[Spectrum, ...], ...]

    @property
    def file(self) -> str:
        """The cached basis."""
        return str(self.facts["file"])

    def rows(self) -> list[tuple[str, str]]:
        """The facts as (name, text), one line each."""
        facts = self.facts
        rows = [(key, str(facts[key])) for key in ("model", "kind", "coefficients", "names_file")]
        for number, report in enumerate(self.names, 1):
            suffix = f" (tokenizer {number})" if len(self.names) > 1 else ""
            rows.append((f"names{suffix}", f"{report.used} of {report.read} used"))
            if report.first_only:
                rows.append((f"first token only{suffix}", str(report.first_only)))
            rows += [(f"dropped{suffix}", f"{count}: {reason}") for reason, count in report.counts().items()]
        for position in facts["positions"]:
            suffix = f" (text encoder {position['text_encoder']})" if len(self.spectra) > 1 else ""
            explained = ", ".join(f"{share:.1%} by {count}" for count, share in position["explained"].items())
            rows.append((f"{position['position']}{suffix}", f"{position['tokens']} tokens, rank {position['rank']}"))
            rows.append((f"{position['position']} variance explained{suffix}", explained))
            rows.append((f"{position['position']} radius{suffix}", f"{position['radius']:.4f}"))
        mapper = facts["mapper"]
        rows.append(("mapper", f"{mapper['description']}, {mapper['file']}" if mapper else "none"))
        return [*rows, ("hash", str(facts["hash"])), ("file", self.file)]

    def name_lines(self) -> list[str]:
        """What became of the names, with examples."""
        lines: list[str] = []
        for number, report in enumerate(self.names, 1):
            suffix = f" for tokenizer {number}" if len(self.names) > 1 else ""
            lines.append(f"{report.used} of {report.read} names are used{suffix}")
            for reason, count in report.counts().items():
                examples = ", ".join(report.dropped.get(reason, ())[:EXAMPLES])
                lines.append(f"  {count} dropped, {reason}{f': {examples}' if examples else ''}")
        return lines

    def chart(self) -> Image:
        """Explained variance and singular values."""
        from .spectrum_chart import draw_spectrum

        kept = " and ".join(f"{count:,}" for count in dict.fromkeys(self.facts["components"]))
        used = f"{self.names[0].used:,} of {self.names[0].read:,} names, {kept} components per position"
        return draw_spectrum(self.spectra, f"The celeb basis of {self.facts['model']}", used)


def basis_report(parts: TokenTables, library: Library, *, release: bool = False) -> BasisReport:
    """Build a model's basis, or read it from the cache, and describe it.

    Raises InvalidInputError when too few of the chosen names remain.
    """
    cache, choice = library.cache(), chosen_names(library, parts)
    names = read_names(parts, choice.file)
    basis = build_basis(parts, cache, names=choice.file, release=release)
    pairs = shared_pairs(parts.tokenizers, names, release=release)
    spectra = spectra_of(parts, pairs, release=release)
    source, reports = choice.origin() if choice.file is not None else (names_file(parts), [])
    reports = reports or [name_report(names, one) for one in pairs]
    facts: dict[str, Any] = {
        "model": parts.name,
        "kind": basis.kind,
        "coefficients": basis.size,
        "components": [components.shape[1] for components in basis.components],
        "names_file": str(source),
        "names": [_name_facts(report) for report in reports],
        "positions": _position_facts(basis, spectra),
        "mapper": _mapper_facts(parts, basis, cache, own_names=choice.file is None),
        "hash": basis.hash,
        "file": str(_cached_file(cache, basis.hash)),
    }
    return BasisReport(facts, reports, spectra)


def chosen_names(library: Library, parts: TokenTables) -> ChosenNames:
    """The names chosen for a model, or where they would be."""
    return ChosenNames(library.root, format_model_key(parts.family, parts.table_hash))


def _mapper_facts(parts: TokenTables, basis: CelebBasis, cache: Path, *, own_names: bool) -> dict[str, Any] | None:
    """The mapper that learning starts from: the one trained last, else the model's own."""
    if basis.kind == "release":
        return None
    trained = trained_mappers(cache, basis)
    if trained:
        return {"description": str(trained[-1]), "file": str(trained[-1].path), **trained[-1].metadata}
    own = parts.card.mapper_file if own_names else None
    return None if own is None else {"description": "the model's own", "file": str(own)}


def _cached_file(cache: Path, basis_hash: str) -> Path:
    """The cached basis of this hash, found by the headers."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(cache.glob("basis-*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), cast(Any, safe_open)(str(path), framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("hash") == basis_hash:
                return path
    raise NotFoundError(f"the celeb basis {basis_hash[:16]} is no longer in {cache}", "try again")


def _name_facts(report: NameReport) -> dict[str, Any]:
    return {
        "read": report.read,
        "used": report.used,
        "first_token_only": report.first_only,
        "dropped": report.counts(),
        "examples": {reason: list(names[:EXAMPLES]) for reason, names in report.dropped.items()},
    }


def _position_facts(basis: CelebBasis, spectra: Sequence[Sequence[Spectrum]]) -> list[dict[str, Any]]:
    return [
        {
            "text_encoder": encoder + 1,
            "position": POSITIONS[position],
            "tokens": spectrum.tokens,
            "rank": spectrum.rank,
            "explained": {str(count): round(spectrum.explained(count), 6) for count in REPORTED},
            "radius": round(float(basis.radius[encoder][position]), 6),
        }
        for encoder, pair in enumerate(spectra)
        for position, spectrum in enumerate(pair)
    ]
