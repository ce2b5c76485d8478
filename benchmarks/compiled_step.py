"""Does compiling the network of a learning step pay? Seconds of a step as it is and compiled, and what compiling takes.

    python benchmarks/compiled_step.py                          # mini, for 1 and 8 people; some minutes on a CPU
    python benchmarks/compiled_step.py --model sd15 --device cuda --people 1 4

On a CPU the network is compiled twice: whole, and with the upsamplers left out (celebctl/method/compiled.py says why).
Of every way the file holds how far its gradients agree with the plain network's, the seconds of compiling and of a
step, and the number of steps after which compiling has paid.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from processes import machine

HERE = Path(__file__).resolve().parent
FIRST = 3000  # seed of the first portrait


def sitting_of(parts: Any, analyser: Any, people: int) -> Any:
    """People who are about to be learned; of their views only a few are encoded, which no step notices."""
    from celebctl.method import build_basis, learn
    from celebctl.method.config import CLEAN
    from celebctl_models.mini.world import draw_portrait

    learn.VIEWS_KEPT = 4
    photos = [draw_portrait(FIRST + i, 512) for i in range(people)]
    faces = [analyser.analyse(photo)[0] for photo in photos]
    config = replace(CLEAN, start="average")
    return learn.Sitting.begin(parts, build_basis(parts), photos, faces, config, together=64)


def tried(sitting: Any, plain: Any, eager: float, around: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
    """One way of compiling, against the gradient and the seconds of the network as it is."""
    import torch

    from celebctl.method.compiled import agreement, compile_network, disagreement, timed

    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage]
    with around():
        started = time.monotonic()
        network = compile_network(sitting.parts.unet)
        sitting.gradient(network)
        ready = time.monotonic() - started
        found, seconds = timed(sitting, network)
    cosine, length = agreement(plain, found)
    return {
        "gradient_cosine": round(cosine, 5), "gradient_length": round(length, 4),
        "agrees": disagreement(plain, found) is None,
        "compile_seconds": round(ready, 1), "step_seconds": round(seconds, 4), "speedup": round(eager / seconds, 3),
        "pays_after_steps": math.ceil(ready / (eager - seconds)) if seconds < eager else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--people", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compiled_step.json")
    args = parser.parse_args()
    from celebctl.method.compiled import on_cpu, timed, upsamplers_left_out
    from celebctl.method.places import choose_place
    from celebctl_models.diffusion import load_parts
    from celebctl_models.faces import InsightFaceAnalyser
    from celebctl_models.registry import card_for, locate

    place = choose_place(args.device)
    parts = load_parts(args.model, dtype=place.dtype, device=place.device)
    drawn = card_for(locate("mini").path).faces_dir  # the photos are of mini's world, whatever the model
    assert drawn is not None
    analyser = InsightFaceAnalyser(drawn)
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {"whole": nullcontext}
    if on_cpu(parts.unet):
        ways["upsamplers left out"] = lambda: upsamplers_left_out(parts.unet)
    rows: list[dict[str, Any]] = []
    for people in args.people:
        sitting = sitting_of(parts, analyser, people)
        plain, eager = timed(sitting, parts.unet)
        row: dict[str, Any] = {"people": people, "views": people * sitting.config.views}
        row |= {"plain_step_seconds": round(eager, 4)}
        row |= {name: tried(sitting, plain, eager, around) for name, around in ways.items()}
        rows.append(row)
        print(json.dumps(row, indent=1), flush=True)
    found = {"model": args.model, "device": place.device, "dtype": str(place.dtype), "machine": machine(), "rows": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
