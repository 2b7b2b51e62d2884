"""Compare core sets that different predictors choose for one prompt, and the text each of them gives.

Usage: python examples/compare_predictors.py [PROMPT]
"""

import sys

import minicore as mc

PREDICTORS = ("stability", "griffin", "weight-norm", "random")
prompt = sys.argv[1] if len(sys.argv) > 1 else "The old house by the river"
model = mc.load("minicore-opt-core")
ids = model.tokenizer.encode(prompt)

reference = mc.predict(model, ids, "stability", alpha=0.4, beta=0.3)
for name in PREDICTORS:
    core = mc.predict(model, ids, name, alpha=0.4, beta=0.3)
    out = model.generate(prompt, max_new_tokens=16, predictor=name, alpha=0.4, beta=0.3)
    print(f"{name:11} {reference.jaccard(core):4.0%} of stability's set  {out.text!r}")
