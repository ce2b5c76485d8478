"""Missing optional packages as errors that name the extra to install."""

import contextlib
from collections.abc import Generator
from importlib import import_module

from celebctl_runtime.errors import SetupError


@contextlib.contextmanager
def requires_extra(extra: str, purpose: str) -> Generator[None]:
    """Turn a missing third-party module into a SetupError that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module.startswith("celebctl"):
            raise  # a missing module of celebctl is a bug
        raise SetupError(
            f"{purpose} needs {module}, which is not installed",
            f'pip install "celebctl[{extra}]"',
            reason="missing_extra",
            extra=extra,
        ) from error


def check_installed(extra: str, purpose: str, *modules: str) -> None:
    """Before long work: raise the SetupError of `requires_extra` when a module of the extra is missing."""
    with requires_extra(extra, purpose):
        for module in modules:
            import_module(module)
