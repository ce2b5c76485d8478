"""The network of a learning step, compiled: worth it for long learning on a GPU, where it is said to help, and checked.

torch.compile fuses a UNet's small operations; on CUDA its mode "reduce-overhead" also replays whole steps as CUDA
graphs. The price is compiling, a minute or more, before the first step. A compiled network is not believed: on the
coming batch its gradient is held against that of the network as it was, because torch 2.13 compiles diffusers'
Upsample2D for a CPU into one whose gradient is silently zero. Upsamplers stay as they are there. Whatever fails,
disagrees or is no faster leaves learning uncompiled, with one line that says why.

On a CPU it does not pay for a person: training mini's UNet was 1.25 times faster compiled (benchmarks/LOG.md), which
for 60 steps is a second or two. `python benchmarks/compiled_step.py` measures a step of learning, and after how many
steps compiling has paid. On CUDA none of this was ever run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

AGREE = 0.99  # least cosine of the two gradients: bfloat16 alone takes .997 (benchmarks/LOG.md)
SIZE = 0.1  # most that their lengths may differ by, as a share
_TIMED = 3  # steps of each network that are timed; the fastest counts


class Stepping(Protocol):
    """What is learning: gives the gradient of the coming batch's loss through a network, flat, and does not move on."""

    def gradient(self, network: Any) -> Tensor: ...


@contextmanager
def compiled(unet: nn.Module, stepping: Stepping, tell: Callable[[str], None]) -> Generator[Any]:
    """The network to learn with: ``unet`` compiled, or ``unet`` itself when compiling does not help.

    The compiled one shares its weights and is meant for the batch size of ``gradient``; ``unet`` is left as it was.
    """
    with upsamplers_left_out(unet) if on_cpu(unet) else _as_it_is():
        yield _better_of(unet, stepping, tell)


def _better_of(unet: nn.Module, stepping: Stepping, tell: Callable[[str], None]) -> Any:
    plain, eager_seconds = timed(stepping, unet)
    started = time.monotonic()
    try:
        network = compile_network(unet)
        found = stepping.gradient(network)
        ready = time.monotonic() - started
        problem = disagreement(plain, found)
        seconds = timed(stepping, network)[1] if problem is None else 0.0
    except Exception as error:  # a compiler that is missing, an operation it does not know: no common root
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        tell(f"learning goes on uncompiled: {reason}")
        return unet
    if problem is None and seconds >= eager_seconds:
        problem = f"a compiled step takes {seconds:.2f} s, a plain one {eager_seconds:.2f} s"
    if problem is not None:
        tell(f"learning goes on uncompiled: {problem}")
        return unet
    tell(f"compiled in {ready:.0f} s: a step is {eager_seconds / seconds:.2f} times as fast, with the same gradients")
    return network


def compile_network(unet: nn.Module) -> Any:
    """The network compiled for one batch size; the first call does the work."""
    mode = None if on_cpu(unet) else "reduce-overhead"
    return cast(Any, torch).compile(unet, mode=mode, dynamic=False)


def agreement(plain: Tensor, compiled: Tensor) -> tuple[float, float]:
    """Cosine of two gradients on the CPU, and the length of the second as a share of the first's."""
    a, b = (np.asarray(one, np.float64).ravel() for one in (plain, compiled))
    long, other = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return float(a @ b) / max(long * other, 1e-300), other / max(long, 1e-300)


def disagreement(plain: Tensor, compiled: Tensor) -> str | None:
    """Why the gradient of a compiled network cannot be taken for the plain one's; None when it can."""
    cosine, length = agreement(plain, compiled)
    if cosine >= AGREE and abs(length - 1.0) <= SIZE:  # false for NaN
        return None
    return f"its gradients do not agree with the plain network's (cosine {cosine:.3f}, length {length:.2f} of theirs)"


def timed(stepping: Stepping, network: Any) -> tuple[Tensor, float]:
    """The gradient, and the seconds of the fastest of a few times."""
    found, best = stepping.gradient(network), float("inf")
    for _ in range(_TIMED):
        started = time.monotonic()
        found = stepping.gradient(network)
        best = min(best, time.monotonic() - started)
    return found, best


def on_cpu(unet: nn.Module) -> bool:
    return next(unet.parameters()).device.type == "cpu"


@contextmanager
def _as_it_is() -> Generator[None]:
    yield


@contextmanager
def upsamplers_left_out(unet: nn.Module) -> Generator[None]:
    """Keep Upsample2D out of what is compiled (torch 2.13 on a CPU: zero gradients); undone afterwards."""
    found = [part for part in unet.modules() if type(part).__name__ == "Upsample2D"]
    for part in found:
        part.forward = cast(Any, torch.compiler).disable(part.forward)
    try:
        yield
    finally:
        for part in found:
            del part.forward
