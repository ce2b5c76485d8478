"""Train mini 2, the model of the illustrated world, on a CPU or on one GPU.

    python -m celebctl_models.mini.illustration.train --work DIR --minutes 900                        # everything
    python -m celebctl_models.mini.illustration.train --work DIR --only autoencoder --minutes 600 --threads 1

Seeded and resumable: the same line again goes on where each stage's checkpoint stands, which is written every two
minutes; with more minutes than it had, a stage trains on. What a step draws depends on its number alone, so that a
stage goes on as if it had not stopped. The stages are autoencoder, text, latent_reader, denoiser, recogniser,
detector, judge, features, car_features, attributes, car_recogniser, car_detector, assemble and mapper. Pictures and
latents on disk carry a mark of the autoencoder they went through; when it trains on, they are drawn anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from celebctl_models.mini.training.trainer import TrainingContext

from .training.pipeline import CPU_SCALE, GPU_SCALE, NEEDS, SHARES, STAGES, Training


def main() -> None:
    """The command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints")
    parser.add_argument("--minutes", type=float, help="of everything, each stage takes its share; with --only of it")
    parser.add_argument("--only", choices=STAGES, help="one stage; what it needs is taken as its checkpoint has it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--compile", action="store_true", help="torch.compile; wants a C++ compiler")
    parser.add_argument("--out", type=Path, help="where assemble writes (default: WORK/weights)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.minutes is None and args.only not in ("assemble", "mapper"):
        parser.error("how long? add --minutes")
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f"--minutes must be more than 0, not {args.minutes:g}")
    minutes = {name: (args.minutes or 0.0) * share for name, share in SHARES.items()}
    if args.only:
        missing = [name for name in NEEDS[args.only] if not (args.work / f"{name}.pt").is_file()]
        if missing:
            parser.error(f"{args.only} needs {', '.join(missing)}, not trained yet in {args.work}")
        minutes = dict.fromkeys(SHARES, 1e-6) | {args.only: args.minutes}
    run = TrainingContext(args.work, torch.device(args.device), compiled=args.compile)
    scale = GPU_SCALE if run.device.type == "cuda" else CPU_SCALE
    training = Training(run, scale, minutes, args.out or args.work / "weights", workers=torch.get_num_threads())
    for name, stage in training.stages.items():
        if args.only in (None, name):
            stage()


if __name__ == "__main__":
    main()
