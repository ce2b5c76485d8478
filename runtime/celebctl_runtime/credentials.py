"""Content credentials: a signed C2PA manifest in a PNG, JPEG or WebP file that says how the picture came about.

They are signed last, over the bytes of the finished file. Written and read by c2pa-python (extra ``provenance``), the
binding of the reference implementation. Vocabulary: C2PA technical specification 2.2; digital source types of IPTC.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

from . import __version__
from .certificate import SELF_SIGNED, SigningKey
from .errors import SetupError

_log = logging.getLogger(__name__)
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = _SOURCES + "trainedAlgorithmicMedia"
EDITED = _SOURCES + "compositeWithTrainedAlgorithmicMedia"
_TRAINING = ("c2pa.training-mining", "cawg.training-mining")  # labels of the assertion, before and since C2PA 2.0
_UNTRUSTED = "signingCredential.untrusted"  # of every certificate outside a list of anchors

State = Literal["trusted", "valid", "invalid"]


@dataclass(frozen=True)
class Ingredient:
    """A picture that another one was made from.

    Attributes:
        content: Its file; credentials inside are kept.
        format: Pillow's name of its format; credentials know PNG, JPEG and WEBP, other files are left out.
        title: What to call it.
    """

    content: bytes
    format: str
    title: str


@dataclass(frozen=True)
class Credentials:
    """What the credentials in a file say.

    Attributes:
        state: "trusted": unchanged, and the certificate leads to one of the anchors; "valid": unchanged, signed by a
            certificate outside the anchors; "invalid": changed since it was signed, or damaged.
        signer: Organisation and name in the certificate.
        self_signed: Whether celebctl generated the certificate itself.
        generator: The program that made the claim.
        source_type: Last word of the digital source type, like "trainedAlgorithmicMedia"; "" when none is given.
        actions: What was done, like "c2pa.created".
        ingredients: Titles of the pictures it was made from.
        problems: C2PA's codes of what did not hold, the missing anchor left out.
        forbids_training: Whether its owner does not allow training or inference on it.
    """

    state: State
    signer: str
    self_signed: bool
    generator: str
    source_type: str
    actions: tuple[str, ...]
    ingredients: tuple[str, ...]
    problems: tuple[str, ...]
    forbids_training: bool

    @property
    def generated(self) -> bool:
        """Whether the picture, or a part of it, was drawn by a trained model."""
        return self.source_type in (GENERATED.rpartition("/")[2], EDITED.rpartition("/")[2])


class Signer:
    """Signs pictures with one key.

    Args:
        key: See certificate.py.

    Raises:
        SetupError: c2pa-python is not installed, or refuses the certificate.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from celebctl_runtime.certificate import local_key
        >>> Image.new("RGB", (8, 8)).save(png := io.BytesIO(), "PNG")
        >>> signer = Signer(local_key(folder / "certificate.pem"))
        >>> signed = signer.sign(png.getvalue(), "PNG", "alice.png")
        >>> read_credentials(signed).actions
        ('c2pa.created',)
    """

    def __init__(self, key: SigningKey) -> None:
        c2pa = load_c2pa()
        info = c2pa.C2paSignerInfo(key.algorithm.encode(), key.chain, key.private_key, None)
        try:
            self._signer: Any = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise _unsigned(error) from error

    def sign(self, content: bytes, format: str, title: str, ingredients: Sequence[Ingredient] = ()) -> bytes:
        """A finished file with credentials.

        Args:
            content: The file.
            format: "PNG", "JPEG" or "WEBP".
            title: The name of the picture.
            ingredients: What it was made from: the picture that drawing started from comes first. Those whose own
                credentials are damaged are left out, with a warning; the file still says that it is an edit.

        Raises:
            SetupError: It cannot be signed.
        """
        c2pa = load_c2pa()
        known = [one for one in ingredients if one.format in FORMATS]
        try:
            return self._sign(content, format, title, known, edited=bool(ingredients))
        except c2pa.C2paError as error:
            usable = [one for one in known if self._can_use(one, content, format)]
            if len(usable) == len(known):
                raise _unsigned(error) from error
        left_out = ", ".join(one.title for one in known if one not in usable)
        _log.warning("the content credentials leave out %s: its own cannot be read", left_out)
        try:
            return self._sign(content, format, title, usable, edited=True)
        except c2pa.C2paError as error:
            raise _unsigned(error) from error

    def _can_use(self, ingredient: Ingredient, content: bytes, format: str) -> bool:
        """Whether a file can be signed with this ingredient alone: one with damaged credentials cannot."""
        try:
            self._sign(content, format, "", [ingredient], edited=True)
        except load_c2pa().C2paError:
            return False
        return True

    def _sign(
        self, content: bytes, format: str, title: str, ingredients: Sequence[Ingredient], *, edited: bool
    ) -> bytes:
        signed = io.BytesIO()
        builder = load_c2pa().Builder(_manifest(format, title, ingredients, edited), _context(()))
        for number, one in enumerate(ingredients):
            facts = {
                "title": one.title,
                "relationship": "componentOf" if number else "parentOf",
                "label": str(number),
            }
            builder.add_ingredient(facts, FORMATS[one.format], io.BytesIO(one.content))
        builder.sign(self._signer, FORMATS[format], io.BytesIO(content), signed)
        return signed.getvalue()


def read_credentials(content: bytes, anchors: Sequence[bytes] = ()) -> Credentials | None:
    """The credentials in a PNG, JPEG or WebP file; None where there are none.

    Args:
        content: The file. Nothing that it refers to is fetched.
        anchors: PEM certificates that are trusted.

    Raises:
        SetupError: c2pa-python is not installed.
    """
    c2pa, format = load_c2pa(), _format(content)
    if format is None:
        return None
    try:
        reader = c2pa.Reader(FORMATS[format], io.BytesIO(content), context=_context(tuple(anchors)))
        return _credentials(json.loads(reader.json()))
    except c2pa.C2paError as error:
        if "ManifestNotFound" in str(error):
            return None
        problem = str(error)[:200]
    except (AttributeError, TypeError, ValueError, RecursionError):  # an assertion of another form
        problem = "malformed"
    return Credentials("invalid", "", False, "", "", (), (), (problem,), False)


def has_credentials(content: bytes) -> bool:
    """Whether a file holds a C2PA manifest, which any program can tell without reading it."""
    return b"c2pa" in content and b"jumb" in content


def _credentials(document: Mapping[str, Any]) -> Credentials:
    manifest: dict[str, Any] = document.get("manifests", {}).get(document.get("active_manifest", ""), {})
    assertions: dict[str, dict[str, Any]] = {
        str(one.get("label", "")).partition("__")[0]: one.get("data", {}) for one in manifest.get("assertions", [])
    }
    performed = [data.get("actions", []) for label, data in assertions.items() if label.startswith("c2pa.actions")]
    actions: list[dict[str, Any]] = performed[0] if performed else []
    sources = [str(action["digitalSourceType"]) for action in actions if "digitalSourceType" in action]
    signature: dict[str, Any] = manifest.get("signature_info", {})
    names = [str(signature.get(key) or "") for key in ("issuer", "common_name")]
    programs = [f"{one.get('name', '')} {one.get('version', '')}" for one in manifest.get("claim_generator_info", [])]
    state = {"Trusted": "trusted", "Valid": "valid"}.get(document.get("validation_state", ""), "invalid")
    codes = [str(one.get("code", "")) for one in document.get("validation_status", [])]
    return Credentials(
        cast("State", state),
        ", ".join(filter(None, names)),
        signature.get("issuer") == SELF_SIGNED,
        programs[0].strip() if programs else str(manifest.get("claim_generator", "")),
        sources[-1].rpartition("/")[2] if sources else "",
        tuple(str(action.get("action", "")) for action in actions),
        tuple(str(one.get("title", "")) for one in manifest.get("ingredients", [])),
        tuple(dict.fromkeys(code for code in codes if code != _UNTRUSTED)),
        any(_forbids(assertions.get(label, {})) for label in _TRAINING),
    )


def _forbids(data: Mapping[str, Any]) -> bool:
    """Whether an entry about training or inference is anything but allowed."""
    entries = cast("Mapping[str, Any]", data.get("entries", {}))
    return any(
        isinstance(entry, dict) and cast("dict[str, Any]", entry).get("use") in ("notAllowed", "constrained")
        for name, entry in entries.items()
        if name.rpartition(".")[2] in ("ai_training", "ai_generative_training", "ai_inference")
    )


def _manifest(format: str, title: str, ingredients: Sequence[Ingredient], edited: bool) -> dict[str, Any]:
    """edited: Whether the picture was made from another one, which `ingredients` may lack."""
    program = {"name": "celebctl", "version": __version__}
    action: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": program}
    actions = [action]
    if ingredients:
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["0"]}}
        actions = [opened, {**action, "action": "c2pa.edited", "digitalSourceType": EDITED}]
        if len(ingredients) > 1:
            placed = {"ingredientIds": [str(number) for number in range(1, len(ingredients))]}
            actions.append({"action": "c2pa.placed", "parameters": placed})
    elif edited:  # "opened" would need the ingredient
        actions = [
            {**action, "digitalSourceType": EDITED},
            {**action, "action": "c2pa.edited", "digitalSourceType": EDITED},
        ]
    return {
        "claim_generator_info": [program],
        "title": title,
        "format": FORMATS[format],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }


@lru_cache(maxsize=4)
def _context(anchors: tuple[bytes, ...]) -> Any:
    settings: dict[str, Any] = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    }
    if anchors:
        settings["trust"] = {"trust_anchors": b"\n".join(anchors).decode("ascii")}
    c2pa = load_c2pa()
    return c2pa.Context(c2pa.Settings.from_dict(settings))


def _format(content: bytes) -> str | None:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def load_c2pa() -> Any:
    """The module c2pa. Raises SetupError when it is not installed, or does not load (reason "extra_unusable")."""
    try:
        import c2pa
    except ImportError as error:
        raise SetupError(
            "content credentials need c2pa-python",
            "install the extra: pip install 'celebctl[provenance]'",
            reason="missing_extra",
            extra="provenance",
            module="c2pa",
        ) from error
    except (OSError, RuntimeError) as error:  # its native library
        raise SetupError(
            f"c2pa-python does not load: {str(error)[:200]}",
            "install a c2pa-python that fits this machine",
            reason="extra_unusable",
            extra="provenance",
            module="c2pa",
        ) from error
    return sys.modules[c2pa.__name__]


def _unsigned(error: Exception) -> SetupError:
    problem = f"the picture cannot be signed: {str(error)[:200]}"
    return SetupError(problem, "check the certificate and its key", reason="signing_failed")
