"""Record what Transformers computes for tutorial 01: logits of the last three tokens of its text.

    python tutorials/data/record_logits.py

It needs torch and transformers (`pip install --group dev`). Run it again when the shipped weights change. The
fingerprint in the file identifies the weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import minicore as mc
from minicore.generation.prediction import fingerprint

TEXT = "The jury came back into the room, and everyone stood up. The judge asked for the"


def main() -> None:
    model = mc.load("minicore-opt-core")
    ids = model.tokenizer.encode(TEXT)
    theirs = AutoModelForCausalLM.from_pretrained(model.source, dtype=torch.float32)
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids])).logits[0, -3:].numpy()
    path = Path(__file__).with_name("transformers_logits.npz")
    np.savez_compressed(path, ids=np.array(ids), logits=logits, fingerprint=fingerprint(model))


if __name__ == "__main__":
    main()
