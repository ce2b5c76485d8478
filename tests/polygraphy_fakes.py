"""Polygraphy's runners on the fake device of tensorrt_fakes.py."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from tensorrt_fakes import FakeEngine, fake_device, open_session


class OnDevice:
    """A runner with Polygraphy's manners over a fake engine, off by ``error``."""

    def __init__(self, path: Path, content: bytes, error: float = 0.0) -> None:
        _, cudart, _ = fake_device()
        self.session = FakeEngine(json.loads(content), cudart).session
        self.error = error

    def infer(self, feed_dict: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [value.name for value in self.session.get_outputs()]
        return {
            name: array + np.float32(self.error) if array.dtype == np.float32 else array
            for name, array in zip(names, self.session.run(None, feed_dict), strict=True)
        }

    def last_inference_time(self) -> float:
        return 0.002


class OnHost(OnDevice):
    def __init__(self, path: Path) -> None:
        self.session = open_session(cast(Any, onnx).load(str(path), load_external_data=False), path.parent)
        self.error = 0.0


def runners(error: float) -> Any:
    def make(path: Path, content: bytes, profile: int) -> tuple[Any, Any]:
        return contextlib.nullcontext(OnDevice(path, content, error)), contextlib.nullcontext(OnHost(path))

    return make
