"""Reading a safetensors file as arrays together with its metadata, which the library's own loader leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Every tensor of a safetensors file, in the dtypes it was written with, and its metadata ({} without any).

    Raises OSError when the file cannot be read, ValueError when it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    # the library's stub gives safe_open neither types nor the context manager's methods
    loose = cast(Any, safe_open)
    try:
        with loose(str(path), framework="np") as opened:
            metadata = cast("dict[str, str]", opened.metadata() or {})
            names = cast("list[str]", opened.keys())
            tensors: dict[str, NDArray[Any]] = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return tensors, metadata
