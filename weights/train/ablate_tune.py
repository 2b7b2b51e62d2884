"""Compare variants of the tuning recipe: a short run of each, then the cost of core sets.

    python weights/train/ablate_tune.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data work \
        --out work/ablation.json --steps 200 --variants '{"recipe": {}, "both rules": {"counts_share": 0.5}}'
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from judge import show, table
from llama import Llama
from mixture import Mixture
from tune import Settings, load, report_texts, run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--variants",
        type=json.loads,
        default={"recipe": {}},
        help="JSON object: name -> settings that differ from the recipe",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    Llama.compiled = args.device.startswith("cuda")
    dtype = torch.bfloat16 if Llama.compiled else torch.float32
    teacher = load(args.model, dtype)[0].to(args.device).requires_grad_(False)
    result: dict[str, dict] = {}
    for name, changes in {"untuned": None, **args.variants}.items():
        began = time.monotonic()
        s = replace(Settings(steps=args.steps, warmup=20, ramp=0.2), **(changes or {}))
        data = Mixture(args.data, args.device, s.window)
        model = teacher if changes is None else run(s, teacher, teacher, data, log=max(args.steps // 2, 1))
        texts = report_texts(data, args.data)
        result[name] = {}
        for whole in (True, False):
            found = table(model, texts, betas=(0.2, 0.4), rules=("griffin", "stability"), whole=whole)
            result[name]["first layer whole" if whole else "all layers"] = found
            print(f"{name}, {'first layer whole' if whole else 'all layers'}\n{show(found)}", flush=True)
        print(f"{time.monotonic() - began:.1f} s", flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
