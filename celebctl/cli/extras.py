"""What an install without an extra cannot do, said kindly."""

import contextlib
from collections.abc import Generator
from importlib import import_module

from celebctl_runtime.errors import SetupError


@contextlib.contextmanager
def requires_extra(extra: str, purpose: str) -> Generator[None]:
    """Turn a missing third-party module into an SetupError that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module.startswith("celebctl"):
            raise  # a module of ours that is missing is a bug, not a choice of extras
        raise SetupError(
            f"{purpose} needs {module}, which is not installed", f'pip install "celebctl[{extra}]"'
        ) from error


def check_installed(extra: str, purpose: str, *modules: str) -> None:
    """Before long work: raise the SetupError of ``needs`` when a module of the extra is missing."""
    with requires_extra(extra, purpose):
        for module in modules:
            import_module(module)
