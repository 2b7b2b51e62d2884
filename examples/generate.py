"""Generate text with all neurons, then with the prompt's core neurons; print how many neurons that were.

Usage: python examples/generate.py [PROMPT]
"""

import sys

import minicore as mc

prompt = sys.argv[1] if len(sys.argv) > 1 else "The old house by the river"
model = mc.load("minicore-opt-core")  # comes with the package; a name, a directory or a .gguf file

for piece in model.stream(prompt, max_new_tokens=24, predictor="dense"):
    print(piece, end="", flush=True)
print()

out = model.generate(prompt, max_new_tokens=24, predictor="stability", alpha=0.4, beta=0.4)
print(out.text)
print(f"{out.stats['core_fraction']:.0%} of the FFN neurons, {out.stats['decode_tokens_per_s']:.0f} tokens/s")
