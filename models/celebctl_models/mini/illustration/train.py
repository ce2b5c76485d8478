"""Train mini 2, the model of the illustrated world.

    python -m celebctl_models.mini.illustration.train --work DIR --only autoencoder --minutes 600 --threads 1

Seeded and resumable: the same line again goes on where the checkpoint stands, which is written every two minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from celebctl_models.mini.training.trainer import TrainingContext

from .training import autoencoder


def main() -> None:
    """The command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--only", choices=("autoencoder",), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    run = TrainingContext(args.work, torch.device(args.device))
    autoencoder.train(run, autoencoder.AutoencoderOptions(args.minutes))


if __name__ == "__main__":
    main()
