"""python -m fuzz [--minutes 60] [--seed N] [--door NAME]...: change genuine files at random until the time is over.

A failing input becomes a file of tests/fuzz/regressions, which tests/test_fuzz.py replays.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path

from .doors import DOORS, fault

REGRESSIONS = Path(__file__).parent / "regressions"


def main() -> int:
    """Fuzz; returns 1 when an input failed."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="time for all doors together")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--door", action="append", choices=sorted(DOORS), help="only this door")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    names = options.door or list(DOORS)
    print(f"seed {seed}", flush=True)
    failures = 0
    for name in names:
        failures += _fuzz(name, seed, 60 * options.minutes / len(names))
    return int(failures > 0)


def _fuzz(name: str, seed: int, seconds: float) -> int:
    """Fuzz one door; returns the number of different faults."""
    chance, door, seen = random.Random(f"{seed} {name}"), DOORS[name], set[str]()
    seeds, count, started = door.seeds(), 0, time.monotonic()
    memory = Path("/dev/shm")  # where every write is flushed at once
    with tempfile.TemporaryDirectory(prefix="celebctl-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        sandbox = Path(folder).resolve() / "sandbox"
        for one in seeds:  # genuine files: they load what is imported late, and must not fail
            _report(name, one.build(one.payload), fault(door, one.build(one.payload), sandbox), seen)
        while time.monotonic() - started < seconds:
            content = chance.choice(seeds).mutated(chance)
            _report(name, content, fault(door, content, sandbox), seen)
            count += 1
    print(f"{name}: {count} inputs, {len(seen)} faults", flush=True)
    return len(seen)


def _report(name: str, content: bytes, problem: str, seen: set[str]) -> None:
    """Keep the first input of each fault, told apart by the last line and place of the traceback."""
    if not problem:
        return
    lines = [line.strip() for line in problem.strip().splitlines()]
    places = [line for line in lines if line.startswith("File ") and "celebctl" in line]
    key = f"{places[-1:]} {lines[-1].split(':')[0]}"
    if key in seen:
        return
    seen.add(key)
    file = REGRESSIONS / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    file.write_bytes(content)
    print(f"--- {name}: {file}\n{problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
