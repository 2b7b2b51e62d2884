"""Stage 8: the twenty prompts of texts.txt continued densely and with the core at 0.3, as Markdown.

python weights/train/texts.py --model weights/minicore-opt-core
"""

from __future__ import annotations

import argparse
from pathlib import Path

import minicore as mc

PROMPTS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minicore-opt-core")
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--new-tokens", type=int, default=70)
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-p", type=float, default=0.95)
    args = parser.parse_args()
    model = mc.load(args.model)
    print(f"| seed | prompt | dense | core at {args.beta} |\n| --- | --- | --- | --- |")
    for seed, line in enumerate(PROMPTS, 1):
        prompt = line.replace("\\n", "\n")
        options = {
            "max_new_tokens": args.new_tokens,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "seed": seed,
        }
        dense = model.generate(prompt, predictor="dense", **options).text
        core = model.generate(prompt, predictor="stability", beta=args.beta, **options).text
        cells = [
            str(seed),
            *(text.strip().replace("|", "\\|").replace("\n", "<br>") for text in (prompt, dense, core)),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
