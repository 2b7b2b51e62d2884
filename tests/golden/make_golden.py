"""Make the tiny random checkpoints beside this file and record what Transformers computes with them.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make_golden.py

Weights come from a NumPy generator, not from torch, so that they do not change with its version. They are
large enough for attention to be sharp and logits to spread, and no bias is zero and no norm weight one: a
tensor that is left out or mixed up shows. Everything is computed in float32 on one thread from the files as
stored, with eager attention and without a cache.

Each directory holds a checkpoint in Hugging Face layout and golden.npz:

    ids                 int64 (n_tokens,)             prompt
    logits              float32 (n_tokens, n_vocab)   at every position of it
    hook_post_l{i}      float32 (n_tokens, n_neurons) what multiplies w_out in layer i
    hook_resid_post_l{i} float32 (n_tokens, d_model)  the residual stream after layer i (not the last)
    greedy_ids          int64 (24,)                   what follows, not stopped at eos
    margins             float32 (24,)                 by how much the best logit led at each step
    greedy_logits       float32 (24, n_vocab)         what each was chosen from
    made_with           str                           versions

and, where the config has an older spelling, config.old.json: the same model as older files write it.
llama-chat also has a tokenizer and, in golden.npz, text, text_ids, chat_ids and greedy_text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

HERE = Path(__file__).parent
N_NEW = 24
LLAMA = {
    "vocab_size": 112,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# name: (config, dtype of the file, how many ids the prompt has, largest shard)
MODELS = {
    "llama": (LlamaConfig(**LLAMA), "float32", 20, None),
    "llama-gqa": (
        LlamaConfig(**LLAMA | {"num_key_value_heads": 2, "num_hidden_layers": 3}),
        "float32",
        20,
        None,
    ),
    # d_head 16: two wavelengths are kept, one lies between, the others are stretched
    "llama3-rope": (LlamaConfig(**LLAMA | {"head_dim": 16, "rope_parameters": ROPE3}), "float32", 48, None),
    "llama-linear-rope": (
        LlamaConfig(
            **LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}
        ),
        "float32",
        32,
        None,
    ),
    "llama-head-dim": (
        LlamaConfig(**LLAMA | {"head_dim": 12, "num_key_value_heads": 2}),
        "float32",
        20,
        None,
    ),
    "llama-bias": (LlamaConfig(**LLAMA | {"attention_bias": True, "mlp_bias": True}), "float32", 20, None),
    "llama-untied": (LlamaConfig(**LLAMA | {"tie_word_embeddings": False}), "float32", 20, None),
    "llama-sharded": (LlamaConfig(**LLAMA | {"tie_word_embeddings": False}), "float32", 20, "60KB"),
    "llama-f16": (LlamaConfig(**LLAMA), "float16", 20, None),
    "llama-bf16": (LlamaConfig(**LLAMA), "bfloat16", 20, None),
    "llama-chat": (
        LlamaConfig(
            **LLAMA | {"vocab_size": 320, "bos_token_id": 257, "eos_token_id": 258, "hidden_size": 24}
        ),
        "float32",
        20,
        None,
    ),
    "qwen2": (
        Qwen2Config(
            **LLAMA
            | {"num_key_value_heads": 2, "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
        ),
        "float32",
        20,
        None,
    ),
    "opt": (
        OPTConfig(
            vocab_size=112,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=2,
            eos_token_id=2,
        ),
        "float32",
        20,
        None,
    ),
    "gpt2": (
        GPT2Config(
            vocab_size=112,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=2,
            eos_token_id=2,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        ),
        "float32",
        20,
        None,
    ),
}
TEXT = "The quick brown fox jumps over the lazy dog; 東京 is 2,194 km² large 🙂.\n"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is naïve about a fox?"},
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def fill(model: torch.nn.Module, seed: int) -> None:
    """Replace every parameter by a random one of a size that matters."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        noise = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        if name.endswith("bias"):
            value = 0.3 * noise
        elif parameter.ndim == 1:
            value = 1 + 0.3 * noise
        elif "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name:
            value = 0.5 * noise
        else:
            value = 1.8 * noise / np.sqrt(np.float32(model.config.hidden_size))
        parameter.data.copy_(torch.from_numpy(value))


def old_spelling(config: dict) -> dict:
    """Return a config as Transformers 4 wrote it."""
    old = dict(config)
    old["torch_dtype"] = old.pop("dtype")
    if "rope_parameters" in old:
        rope = dict(old.pop("rope_parameters"))
        old["rope_theta"] = rope.pop("rope_theta")
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["transformers_version"] = "4.45.0"
    return old


def record(model: torch.nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Run the model and return the arrays of golden.npz."""
    seen: dict[str, np.ndarray] = {}
    parts = model.model if hasattr(model, "model") else model.transformer
    blocks = next(
        getattr(at, name)
        for at in (parts, getattr(parts, "decoder", None))
        for name in ("layers", "h")
        if hasattr(at, name)
    )
    hooks = []
    for i, block in enumerate(blocks):
        last = (
            block.fc2 if hasattr(block, "fc2") else getattr(block.mlp, "down_proj", None) or block.mlp.c_proj
        )

        def keep(module: torch.nn.Module, inputs: tuple, i: int = i) -> None:
            seen[f"hook_post_l{i}"] = inputs[0].reshape(len(ids), -1).numpy().copy()

        hooks.append(last.register_forward_pre_hook(keep))
    with torch.no_grad():
        out = model(torch.from_numpy(ids)[None], output_hidden_states=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        for i in range(len(blocks) - 1):  # Transformers applies the final norm to the last one
            seen[f"hook_resid_post_l{i}"] = out.hidden_states[i + 1][0].numpy().copy()
        seen |= {"ids": ids, "logits": out.logits[0].numpy().copy()}
        text, margins, rows = ids.tolist(), [], []
        for _ in range(N_NEW):
            row = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            best = torch.topk(row, 2).values
            margins.append(float(best[0] - best[1]))
            rows.append(row.numpy().copy())
            text.append(int(row.argmax()))
    seen["greedy_ids"] = np.array(text[len(ids) :])
    seen["margins"] = np.array(margins, np.float32)
    seen["greedy_logits"] = np.stack(rows)
    seen["made_with"] = np.array(
        f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}"
    )
    return seen


def write_tokenizer(folder: Path) -> dict[str, np.ndarray]:
    """Train a byte-level BPE of 320 tokens on a few lines; return the text-level part of golden.npz."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    lines = [TEXT, "a fox is a fox, and the dog over there is lazy", "What is large about the quick dog?"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=317, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    vocab = bpe.get_vocab()
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    # the special tokens sit where the config says: 256 to 258, and the merged tokens come after them
    order = sorted(vocab, key=vocab.get)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    order = order[:256] + specials + order[256:]
    bpe.model = models.BPE({token: i for i, token in enumerate(order)}, merges)
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    assert bpe.get_vocab_size() <= 320, bpe.get_vocab_size()
    bpe.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    text_ids = theirs(TEXT)["input_ids"]
    assert theirs.decode(text_ids) == TEXT
    chat_ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    return {
        "text": np.array(TEXT),
        "text_ids": np.array(text_ids),
        "messages": np.array(json.dumps(MESSAGES)),
        "chat_ids": np.array(chat_ids),
    }


def make(name: str, seed: int) -> bool:
    """Write one directory; return whether its continuation is varied and never a matter of rounding."""
    config, dtype, n_ids, shard = MODELS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    fill(model, seed)
    options = {} if shard is None else {"max_shard_size": shard}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)

    extra = write_tokenizer(folder) if name == "llama-chat" else {}
    ids = np.random.default_rng(seed + 1).integers(3, config.vocab_size, n_ids)
    if extra:
        ids = extra["text_ids"]
    stored = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    golden = record(stored, ids)
    if extra:
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        golden |= extra | {"greedy_text": np.array(theirs.decode(golden["greedy_ids"].tolist()))}

    with tempfile.TemporaryDirectory() as twin:  # the older spelling must mean the same to Transformers
        shutil.copytree(folder, twin, dirs_exist_ok=True)
        old = json.dumps(old_spelling(json.loads((folder / "config.json").read_text())), indent=2) + "\n"
        (Path(twin) / "config.json").write_text(old)
        other = AutoModelForCausalLM.from_pretrained(
            twin, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        assert np.array_equal(record(other, ids)["logits"], golden["logits"]), f"{name}: old spelling differs"
        (folder / "config.old.json").write_text(old)

    np.savez_compressed(folder / "golden.npz", **golden)
    size = sum(file.stat().st_size for file in folder.iterdir())
    distinct, margin = len(set(golden["greedy_ids"].tolist())), golden["margins"].min()
    print(
        f"{name:18} {size / 1e3:6.0f} kB  {len(list(folder.glob('*.safetensors')))} file(s)  "
        f"logits sd {golden['logits'].std():.2f}  hook_post |a| {np.abs(golden['hook_post_l0']).mean():.2f}  "
        f"smallest margin {margin:.3f}  distinct {distinct}"
    )
    return distinct >= 8 and margin > 0.01


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for each in MODELS:
        first = zlib.crc32(each.encode())
        while not make(each, first):
            first += 2
