"""The watermark and the content credentials of saved images, as the user's settings have them. Torch-free."""

import importlib.util
import logging

from celebctl.library import Library
from celebctl.settings import Settings
from celebctl_runtime.certificate import SigningKey, load_anchor, load_key, local_key
from celebctl_runtime.credentials import Signer, load_c2pa
from celebctl_runtime.errors import SetupError, UsageError
from celebctl_runtime.paths import expanded
from celebctl_runtime.picture import Marks
from celebctl_runtime.watermark import PUBLIC_KEY

_log = logging.getLogger(__name__)
CERTIFICATE_FILE = "certificate.pem"  # in the library: the key that celebctl generated for this machine


def user_marks(
    library: Library | None = None, settings: Settings | None = None, *, watermark: bool | None = None
) -> Marks:
    """The marks for images that are saved.

    Args:
        library: Where this machine's certificate is kept; default: the user's library.
        settings: Default: read from the environment and the files.
        watermark: In place of the setting.

    Raises:
        UsageError: The certificate or its key cannot be used, or one of the two is missing.
        SetupError: Credentials are asked for, and c2pa-python is missing (reason
            "missing_extra") or does not load ("extra_unusable").

    Example:
        >>> from celebctl.marks import user_marks
        >>> user_marks(watermark=False).watermark_key is None
        True
    """
    settings = Settings.read() if settings is None else settings
    wanted = settings.text("watermark") == "on" if watermark is None else watermark
    key = user_watermark_key(settings) if wanted else None
    state = settings.text("credentials")
    if state == "off" or (state == "auto" and not can_sign()):
        return Marks(key)
    try:
        load_c2pa()
        signer = Signer(signing_key(Library() if library is None else library, settings))
        return Marks(key, signer, unsigned_on_failure=state == "auto")
    except SetupError as error:
        if state == "on":
            raise
        _log.warning("no content credentials: %s", error.problem)  # a library that is read-only, say
        return Marks(key)


def can_sign() -> bool:
    """Whether c2pa-python is installed."""
    return importlib.util.find_spec("c2pa") is not None


def user_watermark_key(settings: Settings) -> bytes:
    """The user's secret key, or the public one."""
    secret = settings.text("watermark_key")
    # The environment may hold bytes that are not UTF-8.
    return secret.encode(errors="surrogateescape") if secret else PUBLIC_KEY


def own_anchors(library: Library) -> list[bytes]:
    """The certificates of this machine, where some were generated."""
    path = library.root / CERTIFICATE_FILE
    return [load_anchor(path)] if path.is_file() else []


def signing_key(library: Library, settings: Settings) -> SigningKey:
    """The user's own certificate and key, or those of this machine, generated the first time."""
    certificate, private_key = settings.text("certificate"), settings.text("private_key")
    if certificate and private_key:
        return load_key(expanded(certificate), expanded(private_key))
    if certificate or private_key:
        given, missing = ("certificate", "private_key") if certificate else ("private_key", "certificate")
        raise UsageError(
            f"the setting {given} is set, and {missing} is not", f"set {missing}, too", reason="certificate_incomplete"
        )
    return local_key(library.root / CERTIFICATE_FILE)
