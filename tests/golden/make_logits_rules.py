"""Make logits_rules.json: what Transformers' logits processors make of random logits under random settings.

``scores`` are the logits after all processors of a generation config, those of sampling included, with null
for tokens that cannot be drawn. Run with Transformers 5.23:

    python tests/golden/make_logits_rules.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "logits_rules.json"
N_CASES, SEED, N_VOCAB, ENDS = 150, 5, 12, [3, 7]


def draw_case(rng: random.Random) -> dict[str, Any]:
    """Return random logits, tokens so far and settings."""

    def some(**choices: Any) -> dict[str, Any]:
        return {key: draw() for key, draw in choices.items() if rng.random() < 0.3}

    n = rng.randrange(1, 12)
    n_prompt = rng.randrange(1, n + 1)

    def ids(k: int) -> list[int]:
        return [rng.randrange(N_VOCAB) for _ in range(k)]

    settings = some(
        repetition_penalty=lambda: rng.choice([0.8, 1.1, 1.5]),
        no_repeat_ngram_size=lambda: rng.choice([1, 2, 3]),
        bad_words_ids=lambda: [[9], [3], [4, 5], ids(2), ids(3)],
        min_length=lambda: rng.randrange(14),
        min_new_tokens=lambda: rng.randrange(6),
        suppress_tokens=lambda: sorted({*ids(2)}),
        begin_suppress_tokens=lambda: sorted({*ids(2)}),
    )
    if rng.random() < 0.6:
        settings |= {"do_sample": True, "temperature": rng.choice([0.5, 1.0, 1.7]), "top_k": 0}
        settings |= some(
            top_k=lambda: rng.choice([1, 4, 8]),
            top_p=lambda: rng.choice([0.3, 0.7, 0.95]),
            min_p=lambda: rng.choice([0.02, 0.1, 0.5]),
            typical_p=lambda: rng.choice([0.2, 0.6, 0.9]),
            epsilon_cutoff=lambda: rng.choice([0.01, 0.1, 0.9]),
            eta_cutoff=lambda: rng.choice([0.01, 0.1, 0.9]),
        )
    alphabet = rng.sample(range(N_VOCAB), 4)  # few tokens, so that sequences repeat
    return {
        "ids": [rng.choice(alphabet) for _ in range(n)],
        "n_prompt": n_prompt,
        "logits": [round(rng.gauss(0, 2), 3) for _ in range(N_VOCAB)],
        "settings": settings,
    }


def ask_transformers(case: dict[str, Any]) -> list[float | None]:
    """Return the scores that Transformers makes of the logits."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=N_VOCAB, **tiny))
    config = GenerationConfig(eos_token_id=ENDS, **case["settings"])
    model._prepare_special_tokens(config, device="cpu")
    processors = model._get_logits_processor(config, case["n_prompt"], device="cpu")
    scores = processors(torch.tensor([case["ids"]]), torch.tensor([case["logits"]]))[0].tolist()
    return [None if score == float("-inf") else score for score in scores]


def main() -> None:
    rng = random.Random(SEED)
    cases = [draw_case(rng) for _ in range(N_CASES)]
    lines = [json.dumps(case | {"scores": ask_transformers(case)}, separators=(",", ":")) for case in cases]
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
