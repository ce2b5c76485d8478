"""Regenerate the image at the top of the README: python examples/make.py (about a minute on two cores).

Learns both portraits of this folder in a temporary library, exports, generates, and writes `alice-and-bob.png`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from celebctl.interpolation_strip import lay_out

HERE = Path(__file__).parent
PROMPTS = (
    ("alice and bob playing chess", 8),
    ("alice and bob shaking hands in the forest", 6),
    ("alice smiling on the beach", 2),
    ("bob crying, playing the guitar", 3),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "CELEBCTL_HOME": home, "CELEBCTL_MODEL": "mini"}

        def run(*words: str) -> None:
            subprocess.run([sys.executable, "-m", "celebctl", *words], check=True, env=environment)

        portraits = [HERE / f"{name}.png" for name in ("alice", "bob")]
        run("learn", *map(str, portraits), "--name", "alice", "--name", "bob", "--no-sheet")
        run("export")
        pictures = [Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS) for path in portraits]
        for number, (prompt, seed) in enumerate(PROMPTS):
            out = Path(home) / f"{number}.png"
            run("gen", prompt, "--seed", str(seed), "--out", str(out))
            pictures.append(Image.open(out).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS))
    captions = ["the photo of alice", "the photo of bob", *(prompt for prompt, _ in PROMPTS)]
    lay_out(pictures, captions).save(HERE / "alice-and-bob.png", optimize=True)


if __name__ == "__main__":
    main()
