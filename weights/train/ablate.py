"""Variants of the tuning stage at equal budget, from one plain model: what each ingredient is worth.

python weights/train/ablate.py --data work --teacher weights/minicore-opt --out work/ablation.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from train import Corpus, Settings, Trainer, load, report

VARIANTS: dict[str, dict[str, float]] = {
    "as shipped": {},
    "never levelled": {"level_every": 0},
    "no weight outside the core": {"outside": 0.0},
    "twice that weight": {"outside": 2 * Settings.outside},
    "not distilled": {"kl": 0.0},
    "a quarter of the texts dense": {"dense_share": 0.25},
    "half the learning rate": {"lr": Settings.lr / 2},
    "from scratch": {"scratch": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="names of variants; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    teacher = load(args.teacher, args.device)[0]
    trainer = Trainer(
        Corpus(args.data, args.device, teacher.shape.n_ctx),
        args.device,
        compiled=args.device.startswith("cuda"),
    )
    base = Settings(steps=args.steps, batch=args.batch, warmup=args.warmup, ramp=0.0, shape=teacher.shape)
    rows = {"teacher": report(teacher, args.data, args.device)}
    print("teacher", rows["teacher"], flush=True)
    for name in args.only or VARIANTS:
        model = trainer.run(replace(base, **VARIANTS[name]), teacher, log=args.steps)
        rows[name] = report(model, args.data, args.device)
        print(name, "::", rows[name], flush=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
