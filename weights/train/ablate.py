"""Variants of the tuning stage at equal budget, from one plain model: what each ingredient is worth.

python weights/train/ablate.py --data work --teacher work/plain.pt --out work/ablation.json --steps 600
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
    "levelled at the end alone": {"level_every": 1 << 30},
    "outside 0.3": {"outside": 0.3},
    "not distilled": {"kl": 0.0},
    "a quarter dense": {"dense_share": 0.25},
    "half the learning rate": {"lr": 0.5},
    "from scratch": {"scratch": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--warmup", type=int, default=25)
    parser.add_argument("--only", nargs="*", help="names of variants; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    teacher, state = load(args.teacher, args.device)
    trainer = Trainer(
        Corpus(args.data, args.device, teacher.shape.n_ctx),
        args.device,
        compiled=args.device.startswith("cuda"),
    )
    base = Settings(
        steps=args.steps,
        batch=args.batch,
        warmup=args.warmup,
        seed=3,
        weight_decay=0.1,
        outside=0.1,
        dense_share=0.05,
        split_power=1.5,
        ramp=0.0,
        shape=teacher.shape,
    )
    rows = {"teacher": report(teacher, args.data, args.device)}
    print("teacher", rows["teacher"], flush=True)
    for name in args.only or VARIANTS:
        change = dict(VARIANTS[name])
        lr = args.lr * change.pop("lr", 1.0)
        model = trainer.run(replace(base, lr=lr, **change), teacher, log=args.steps)
        rows[name] = report(model, args.data, args.device)
        print(name, "::", rows[name], flush=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
