"""Stage 8: the twenty prompts of texts.txt continued densely and with the core at 0.3, as Markdown.

python weights/train/texts.py --model weights/minicore-opt-core
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import minicore as mc

PROMPTS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()


def entry(seed: int, prompt: str, dense: str, core: str) -> str:
    """Return a numbered Markdown item with the prompt in bold and both continuations, wrapped at 100."""
    indent = " " * len(f"{seed}. ")
    paragraphs = [(f"{seed}. ", f"**{prompt}**"), (indent + "- ", f"dense: {dense}")]
    return "\n".join(
        textwrap.fill(
            text.replace("\n", "<br>"),
            100,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_on_hyphens=False,
            break_long_words=False,
        )
        for start, text in [*paragraphs, (indent + "- ", f"core: {core}")]
    )


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
        print(entry(seed, *(text.strip() for text in (prompt, dense, core))), flush=True)


if __name__ == "__main__":
    main()
