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

VARIANTS = {
    "mask in the loop, text only": {"kl": 0.0},
    "+ distillation (0.5)": {"kl": 0.5},
    "+ outside 0.3": {"kl": 0.5, "outside": 0.3},
    "outside 1.0 instead": {"kl": 0.5, "outside": 1.0},
    "outside 0.3, distillation alone": {"kl": 1.0, "outside": 0.3},
    "outside 0.3, three times the learning rate": {"kl": 0.5, "outside": 0.3, "lr": 3.0},
    "from scratch, text only": {"kl": 0.0, "ramp": 0.0, "scratch": True, "lr": 3.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=50)
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
    base = Settings(steps=args.steps, batch=args.batch, warmup=args.warmup, seed=3, shape=teacher.shape)
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
