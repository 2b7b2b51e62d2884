"""Record the logits that llama.cpp computes for tiny models of many architectures: gguf-logits.json.

    python tests/golden/make_gguf_logits.py

minicore writes the models as GGUF files in float32. Needs llama-cpp-python (the file was made with 0.3.36).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import minicore as mc
from tests.helpers.families import write
from tests.helpers.gguf_models import IDS, LLAMA_CPP_LACKS, gguf_models


def main() -> None:
    from llama_cpp import Llama

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, shapes) in gguf_models().items():
            if name in LLAMA_CPP_LACKS:
                continue
            model = mc.load(write(Path(folder) / name, name, config, shapes))
            path = model.export(Path(folder) / f"{name}.gguf", "gguf").path
            theirs = Llama(str(path), n_ctx=64, logits_all=True, type_k=0, type_v=0, verbose=False)
            theirs.eval(IDS)
            found[name] = [round(float(logit), 4) for logit in theirs.scores[len(IDS) - 1]]
    target = Path(__file__).with_name("gguf-logits.json")
    target.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
