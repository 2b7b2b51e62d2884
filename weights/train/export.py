"""Stage 6: write a checkpoint in Hugging Face layout.

    python weights/train/export.py --checkpoint work/core.pt --tokenizer work/tokenizer.json \
        --out weights/minicore-opt-core --beta 0.3

Matrices are rounded to bfloat16 first, the precision training multiplied in: the file holds them as float16
all the same, where those values are exact (below 2**-14 nearly so), and they compress better.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from layout import NAMES
from opt import OPT
from safetensors.torch import save_file
from train import load

CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + '<|endoftext|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def half(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.bfloat16() if tensor.ndim == 2 else tensor).half().cpu().contiguous()


@torch.no_grad()
def levelled(model: OPT) -> OPT:
    """The same function, with every neuron's level (OPT.level) in its weights."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.fc1.weight.mul_(block.level[:, None])
        block.fc1.bias.mul_(block.level)
        block.fc2.weight.div_(block.level)
        block.level.fill_(1.0)
    return model


def to_hugging_face(model: OPT) -> dict[str, torch.Tensor]:
    model = levelled(model)
    tensors = {
        "model.decoder.embed_tokens.weight": model.embed.weight,
        "model.decoder.embed_positions.weight": model.positions.weight,
        "model.decoder.final_layer_norm.weight": model.norm.weight,
        "model.decoder.final_layer_norm.bias": model.norm.bias,
    }
    for i, block in enumerate(model.blocks):
        for ours, theirs in NAMES.items():
            for kind in ("weight", "bias"):
                tensors[f"model.decoder.layers.{i}.{theirs}.{kind}"] = getattr(getattr(block, ours), kind)
    return {name: half(tensor.detach()) for name, tensor in tensors.items()}


def config(model: OPT) -> dict:
    s = model.shape
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "do_layer_norm_before": True,
        "dropout": 0.0,
        "enable_bias": True,
        "eos_token_id": 0,
        "ffn_dim": s.n_neurons,
        "hidden_size": s.d_model,
        "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0,
        "max_position_embeddings": s.n_ctx,
        "num_attention_heads": s.n_heads,
        "num_hidden_layers": s.n_layers,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": s.n_vocab,
        "word_embed_proj_dim": s.d_model,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--beta", type=float, help="recommend stability-guided core decoding at this beta")
    args = parser.parse_args(argv)
    model, _ = load(args.checkpoint, "cpu")
    args.out.mkdir(parents=True, exist_ok=True)

    def write(name: str, content: dict) -> None:
        (args.out / name).write_text(json.dumps(content, indent=2) + "\n")

    generation = {"bos_token_id": 0, "eos_token_id": 0}
    if args.beta is not None:
        generation["minicore"] = {"predictor": "stability", "alpha": 0.4, "beta": args.beta}
    write("config.json", config(model))
    write("generation_config.json", generation)
    end = "<|endoftext|>"
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": model.shape.n_ctx,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    (args.out / "tokenizer.json").write_bytes(args.tokenizer.read_bytes())
    save_file(to_hugging_face(model), args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
