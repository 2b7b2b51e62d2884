"""Plot a layer's activations on a prompt, with each token's core neurons marked.

Usage: python examples/plot_core_set.py [OUTPUT.png [PROMPT]]
"""

import sys

import minicore as mc
from minicore import plots

path = sys.argv[1] if len(sys.argv) > 1 else "core_set.png"
prompt = sys.argv[2] if len(sys.argv) > 2 else "The old house by the river"
layer = 2
model = mc.load("minicore-opt-core")
ids = model.tokenizer.encode(prompt)

hook = f"blocks.{layer}.mlp.hook_post"
_, cache = model.run_with_cache(ids, names_filter=lambda name: name == hook)
activations = cache[hook][1:]  # (n_tokens, n_neurons) without the first token, whose are far larger
core = mc.predict(model, ids, "stability").neurons[layer]
ax = plots.activation_map(
    activations,
    tokens=[model.tokenizer.decode([i]) for i in ids[1:]],
    neurons=core[:: max(len(core) // 40, 1)],
    core=mc.token_core(activations, 0.4),
)
plots.save(ax, path)
print(f"wrote {path}: {len(core)} core neurons of layer {layer}")
