"""Train mini from nothing, or go on from what ships.

    python -m celebctl_models.mini.train --work mini-work --hours 2          # everything, in order
    python -m celebctl_models.mini.train --work mini-work --only assemble    # write what the checkpoints hold
    python -m celebctl.mapper_training.pretraining ...   # the mapper; assemble prints this line
    python -m celebctl_models.mini.train --work mini-more --from-shipped --only denoiser --minutes 60
    python -m celebctl_models.mini.train --work mini-more --from-shipped --only assemble
    python -m celebctl_models.mini.train --work mini-more --from-shipped --device cuda --fresh 524288 --batch 512 ...

Seeded and resumable: run the same line again and every stage goes on where its checkpoint stands; with more minutes
than it had, it trains on. CPU or CUDA. The stages are autoencoder, text, latent_reader, denoiser, recogniser, detector,
judge, attributes, assemble; each gets a share of the hours. With --from-shipped everything but the denoiser is what
ships, and the denoiser starts from its weights; with --fresh scenes are drawn on the device and never kept, which is
what a GPU wants (MODEL_CARD.md has the line that made what ships).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import torch

from celebctl_models.checkpoints.diffusion import load_parts

from .names import name_book
from .training.trainer import TrainingContext

#: Shares of the whole time, from what mattered on two CPU cores.
SHARES = {
    "autoencoder": 0.14,
    "text": 0.05,
    "latent_reader": 0.04,
    "denoiser": 0.60,
    "recogniser": 0.06,
    "detector": 0.04,
    "judge": 0.05,
    "attributes": 0.02,
}
STAGES = (*SHARES, "assemble")
WEIGHTS = Path(__file__).parent / "weights"


class Pipeline:
    """The stages in order: each asks for the results of earlier stages, which are made once and kept."""

    def __init__(self, run: TrainingContext, minutes: dict[str, float], shipped: Path | None, options: Any) -> None:
        self.run, self.minutes, self.shipped = run, minutes, shipped
        self.shards, self.batch, self.rate, self.fresh = options.shards, options.batch, options.rate, options.fresh
        self.results: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The result of a stage; it runs when it is first asked for."""
        if name not in self.results:
            self.results[name] = getattr(self, f"_{name}")()
        return self.results[name]

    def _pictures(self) -> Any:
        from .training.data import load_pictures

        return load_pictures(self.run, self.shards, 64)

    def _autoencoder(self) -> Any:
        from .training import autoencoder, denoiser

        if self.shipped is not None:
            return self._shipped("vae").to(memory_format=torch.channels_last)
        vae = autoencoder.train(self.run, self.get("pictures"), self.minutes["autoencoder"])
        denoiser.standardise_latents(vae, self.get("pictures"), self.run)
        return vae.requires_grad_(False)

    def _latents(self) -> Any:
        from .training.denoiser import encode_pictures

        return encode_pictures(self.get("autoencoder"), self.get("pictures"), self.run)

    def _text(self) -> Any:
        from .training import text

        if self.shipped is not None:
            return self._shipped("tokenizers"), self._shipped("text_encoders")
        return text.train(self.run, self.minutes["text"])

    def _scenes(self) -> Any:
        """Scenes and their latents."""
        from .training import on_device_data

        if self.fresh:
            return on_device_data.draw_pictures(self.run, self.get("autoencoder"), self.fresh)
        return self.get("pictures"), self.get("latents")

    def _latent_reader(self) -> Any:
        from .training import faces, latent_reader, on_device_data

        if self.fresh:
            population = latent_reader.DRAW, latent_reader.IDENTITIES
            vae, count = self.get("autoencoder"), self.fresh // 2
            scenes, latents = on_device_data.draw_faces(self.run, vae, count, *population)
            return latent_reader.train(self.run, scenes, latents, self.minutes["latent_reader"], self.batch)
        population = latent_reader.DRAW, latent_reader.SHARDS, latent_reader.IDENTITIES
        scenes = faces.load_faces(self.run, "unique", *population)
        latents = latent_reader.encode_faces(self.get("autoencoder"), scenes, self.run)
        return latent_reader.train(self.run, scenes, latents, self.minutes["latent_reader"])

    def _denoiser(self) -> Any:
        from .training import denoiser

        pictures, latents = self.get("scenes")
        tokenizer, text = self.get("text")
        start = None if self.shipped is None else self._shipped("unet").state_dict()
        data = denoiser.DenoiserData(pictures, latents, tokenizer, text, self.get("latent_reader"))
        options = denoiser.DenoiserOptions(self.minutes["denoiser"], self.batch, self.rate)
        return denoiser.train(self.run, data, options, start)

    def _shipped(self, part: str) -> Any:
        """One network of the shipped folder, frozen, in float32."""
        if "parts" not in self.results:
            self.results["parts"] = load_parts(self.shipped or WEIGHTS, device=str(self.run.device))
        network: Any = getattr(self.results["parts"], part)
        return cast(Any, network[0]) if isinstance(network, tuple) else network

    def _faces(self, name: str, draw: int, shards: int) -> Any:
        from .training import faces

        scenes = faces.load_faces(self.run, name, draw, shards)
        faces.add_decoded(scenes, self.get("autoencoder"), self.run, name)
        return scenes

    def _recogniser_faces(self) -> Any:
        return self._faces("recogniser", 71, 8)

    def _judge_faces(self) -> Any:
        return self._faces("judge", 72, 8)

    def _recogniser(self) -> Any:
        from .training import faces
        from .training.recogniser import train_recogniser

        portraits = faces.load_portraits(self.run, "recogniser", 71, 5)
        return train_recogniser(
            self.run, self.get("recogniser_faces"), self.get("judge_faces"), self.minutes["recogniser"], judge=False,
            portraits=portraits,
        )  # fmt: skip

    def _judge(self) -> Any:
        from .training.recogniser import train_recogniser

        trained, held_out = self.get("judge_faces"), self.get("recogniser_faces")
        return train_recogniser(self.run, trained, held_out, self.minutes["judge"], judge=True)

    def _detector(self) -> Any:
        from .training.detector import train_detector

        return train_detector(self.run, self.get("recogniser_faces"), self.minutes["detector"])

    def _attributes(self) -> Any:
        from .training import attributes

        return attributes.train(
            self.run, self.get("pictures"), self.get("latents"), self.get("autoencoder"), self.minutes["attributes"]
        )

    def assemble(self, out: Path) -> None:
        """Write everything that was trained, or ships already, as a model folder."""
        from .training import assemble as pack
        from .training import faces, latent_reader, mapper_dataset

        tokenizer, text = self.get("text")
        pack.save_diffusion(out, self.get("autoencoder"), text, self.get("denoiser"), tokenizer)
        pack.save_card(out, name_book())
        if self.shipped is None:
            pack.save_faces(out / "faces", self.get("recogniser"), self.get("detector"))
            pack.save_scoring(out / "scoring", self.get("judge"), self.get("attributes"))
            draw = latent_reader.DRAW, latent_reader.SHARDS, latent_reader.IDENTITIES
            heads = torch.load(self.run.path("text.pt"), map_location="cpu", weights_only=True)["networks"]["reader"]
            scenes = faces.load_faces(self.run, "unique", *draw)
            data = mapper_dataset.write(self.run, out / "faces", scenes, heads)
            command = f"--model {out} --data {data} --out {out / 'mapper.safetensors'}"
            self.run.say(f"last: python -m celebctl.mapper_training.pretraining {command}")
        elif out.resolve() != self.shipped.resolve():
            for kept in ("faces", "scoring", "mapper.safetensors"):
                pack.copy(self.shipped / kept, out / kept)
        pack.report_size(self.run, out)


def main() -> None:
    """The command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and checkpoints (about 3 GB)")
    parser.add_argument("--hours", type=float, default=2.0, help="time for everything; each stage takes its share")
    parser.add_argument("--only", choices=STAGES, help="one stage; what it needs is taken as its checkpoint has it")
    parser.add_argument("--minutes", type=float, help="with --only: minutes for that stage instead of its share")
    parser.add_argument("--from-shipped", action="store_true", help="go on from the weights that ship (denoiser only)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--compile", action="store_true", help="torch.compile: 1.3x on a CPU, wants a C++ compiler")
    parser.add_argument("--shards", type=int, default=16, help="4,096 pictures each")
    parser.add_argument("--batch", type=int, default=32, help="denoiser batch; with --fresh the latent reader's, too")
    parser.add_argument("--rate", type=float, default=7e-4, help="the denoiser's highest learning rate")
    parser.add_argument("--fresh", type=int, default=0, help="with --from-shipped: draw so many scenes on the device")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where assemble writes")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.fresh and not args.from_shipped:
        parser.error("--fresh keeps no pixels, which the autoencoder and the judges learn from: add --from-shipped")
    minutes = {name: 60.0 * args.hours * share for name, share in SHARES.items()}
    if args.only:
        minutes = dict.fromkeys(SHARES, 1e-6) | {args.only: args.minutes or minutes.get(args.only, 0.0)}
        needed = ("denoiser",) if args.from_shipped else STAGES[:-1]
        missing = [name for name in needed if not (args.work / f"{name}.pt").is_file()]
        if args.only == "assemble" and missing:
            parser.error(f"nothing to assemble yet: {', '.join(missing)} not trained in {args.work}")
    run = TrainingContext(args.work, torch.device(args.device), compiled=args.compile)
    pipeline = Pipeline(run, minutes, WEIGHTS if args.from_shipped else None, args)
    if args.only and args.only != "assemble":
        pipeline.get(args.only)
        return
    for name in ("latent_reader", "denoiser") if args.from_shipped else SHARES:
        pipeline.get(name)
    pipeline.assemble(args.out)


if __name__ == "__main__":
    main()
