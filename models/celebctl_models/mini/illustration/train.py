"""Train mini 2, the model of the illustrated world, on a CPU or on one GPU.

    python -m celebctl_models.mini.illustration.train --work DIR --minutes 900                        # everything
    python -m celebctl_models.mini.illustration.train --work DIR --only autoencoder --minutes 600 --threads 1

Seeded and resumable: the same line again goes on where each stage's checkpoint stands, which is written every two
minutes; with more minutes than it had, a stage trains on. What a step draws depends on its number alone, so that a
stage goes on as if it had not stopped. The stages are autoencoder, text, latent_reader, denoiser, recogniser,
detector, judge, features, car_features, attributes, car_recogniser, car_detector, assemble and mapper. Pictures and
latents on disk carry a mark of the autoencoder they went through: when it trains on, they are drawn anew, so train it
to its end first.

A stage that has had more minutes than it is given is taken as it is. So the slow parts can be trained on a CPU for
days, and a GPU then spends its time on what is left.

CPU plan, two cores to itself. Per core: 90 scenes a second drawn; an autoencoder step of four scenes (16 windows) about
.5 s. The denoiser, from mini's 15,668 x 32 in 136 minutes: 61 samples a second on both cores.

    autoencoder      600 min, 70,000 steps         text         15 min beside it (it needs no pictures)
    latent_reader     20 min, drawing before: 15   denoiser    600 min: 2.2 million samples, drawing before: 30
    recogniser 25, judge 12, detector 8, features 20, car_recogniser 12, car_detector 8, car_features 10, attributes 15
    min, drawing five populations before: 15       assemble      1 min        mapper 25 min

    (mini's denoiser saw .5 million samples on the CPU and 3.1 million on the GPU.)

GPU plan, one H100 for 25 minutes, everything in one process: ``--minutes 20.5 --device cuda --compile``, and 4.5
minutes of drawing; not yet run on a GPU. From mini's card: the denoiser took 6,114 x 512 in 8.4 minutes (6,200 samples
a second), the latent reader 3,136 x 512 in .8 (33,000), scenes of 64 px were drawn and encoded at 7,000 a second.
Estimated from that: a scene of this world costs a core 11 ms where mini's cost 5, so 3,000 scenes a second drawn; the
autoencoder learns from 1,000.

    autoencoder    4.5 min  64 scenes a step   4,200 steps, 270,000 scenes
    latent_reader  1.0 min  512 latents        4,000 steps; .7 min before it for 131,072 scenes
    denoiser       9.4 min  512 latents        6,800 steps, 3.5 million samples; 2.2 min before for 393,216 scenes
    the rest       5.6 min  512 crops          text .6, recogniser 1.0, judge .6, detector .4, features .8, ...;
                                               1.6 min before for 270,000 scenes, 13 GB kept on the GPU

Better, where a CPU has hours beforehand: autoencoder, text and all of the rest on the CPU, then on the GPU
``--only latent_reader --minutes 1.5`` and ``--only denoiser --minutes 19``: 7.0 million samples. Afterwards, on the
CPU: assemble and mapper.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from celebctl_models.mini.training.mapper_dataset import FILE_NAME
from celebctl_models.mini.training.trainer import TrainingContext

from .training.assemble import size_report
from .training.pipeline import CPU_SCALE, GPU_SCALE, NEEDS, SHARES, STAGES, Training


def train_mapper(training: Training, data: Path) -> None:
    """Train the mapper of the assembled folder, in a process of its own: its code is celebctl's, not the models'."""
    out = training.out
    command = ["--model", out, "--dataset", data, "--out", out / "mapper.safetensors"]
    program = [sys.executable, "-m", "celebctl.mapper_training.pretraining", *(str(part) for part in command)]
    subprocess.run(program, check=True)
    training.run.say(size_report(out))


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
    given = float(args.minutes or 0.0)
    minutes = {name: given * share for name, share in SHARES.items()}
    if args.only:
        missing = [name for name in NEEDS[args.only] if not (args.work / f"{name}.pt").is_file()]
        if missing:
            parser.error(f"{args.only} needs {', '.join(missing)}, not trained yet in {args.work}")
        minutes = dict.fromkeys(SHARES, 1e-6) | {str(args.only): given}
    run = TrainingContext(args.work, torch.device(args.device), compiled=args.compile)
    scale = GPU_SCALE if run.device.type == "cuda" else CPU_SCALE
    training = Training(run, scale, minutes, args.out or args.work / "weights", workers=torch.get_num_threads())
    for name, stage in training.stages.items():
        if args.only in (None, name):
            stage()
    if args.only in (None, "mapper"):
        train_mapper(training, run.path(FILE_NAME))


if __name__ == "__main__":
    main()
