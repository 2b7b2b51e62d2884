"""Make LoRA adapters with PEFT for checkpoints in this folder, and record what the merged models compute.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
    python tests/golden/make_adapters.py

Each directory in adapters/ is what PEFT saves, with expected.npz:

    ids        int64 (n_tokens,)
    logits     float32 (n_tokens, n_vocab)   after merge_and_unload, in float32
    made_with  str                           versions
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
ADAPTERS = {
    "gpt2": {
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,
        "use_rslora": True,
        "r": 3,
        "lora_alpha": 5,
    },
    "llama-untied": {
        "target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"],
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {"layers.1.self_attn.q_proj": 4},
        "alpha_pattern": {"down_proj": 1.5},
    },
    "opt": {"target_modules": r".*\.1\.(fc1|fc2|self_attn\.(k_proj|out_proj))", "r": 4},
}


def main() -> None:
    for name, options in ADAPTERS.items():
        base = transformers.AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32)
        adapted = peft.get_peft_model(base, peft.LoraConfig(**options))
        rng = np.random.default_rng(0)
        for key, weight in adapted.named_parameters():
            if "lora_" in key:
                weight.data = torch.tensor(rng.standard_normal(weight.shape), dtype=torch.float32) / 4
        folder = HERE / "adapters" / name
        adapted.peft_config["default"].base_model_name_or_path = name
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        ids = torch.arange(3, 19)
        with torch.no_grad():
            logits = adapted.merge_and_unload()(ids[None]).logits[0]
        versions = (
            f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
        )
        np.savez_compressed(
            folder / "expected.npz", ids=ids.numpy(), logits=logits.numpy(), made_with=versions
        )


if __name__ == "__main__":
    main()
