"""Make token_sources.json: where special and added tokens come from, as Transformers decides it.

Each case is a directory's small files, drawn at random: tokens named in tokenizer_config.json, in
special_tokens_map.json or by a tokenizer class, as text, object or null, or not at all; tokens added by id;
chat templates in their several places; tokenizer.json, byte-level or as SentencePiece's, or vocab.json and
merges.txt. ``expected`` is what AutoTokenizer of Transformers made of it. Run with Transformers 5.23:

    python tests/golden/make_token_sources.py
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "token_sources.json"
N_CASES, SEED = 90, 24
TEXTS = [
    "hi there<|im_end|> the <think>hen</think>",
    "<s>then [PAD]<|endoftext|>",
    "<bos> in the end <extra>",
]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the hen"}]

_POOL = ["<s>", "</s>", "<bos>", "<|endoftext|>", "<|im_end|>", "<think>", "[PAD]", "<unk>", "<extra>"]
_IN_VOCABULARY = ["<s>", "</s>", "<|endoftext|>", "<|im_end|>", "<unk>"]
_MERGES = ["t h", "th e", "Ġ the", "i n", "h e", "he n", "Ġ hen", "e n", "en d", "Ġ in", "h i"]
_PIECES = ["▁ t", "▁t h", "▁th e", "h i", "▁ hi", "▁ h", "e n", "▁h en"]
_NAMES = ["bos_token", "eos_token", "unk_token", "pad_token"]
_CLASSES = [None, "PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2TokenizerFast"]
_FAMILIES = ["llama", "qwen2", "gpt2", "opt", "mistral", "gpt_neox", "phi3", "qwen3", "olmo2"]
_TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m | tojson }}{% endif %}{% endfor %}{{ pad_token }}|{{ unk_token }}|{{ image_token }}",
    "{%- for m in messages %}{%- if loop.index > 1 %}{%- break %}{%- endif %}{{ m.content }}\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_end|>A:' }}{%- endif %}",
    "{% if bos_token is defined and bos_token %}has {{ bos_token }}{% else %}none{% endif %}",
]


def vocabulary() -> dict[str, int]:
    """Return a byte-level vocabulary: the 256 bytes, the merges' results, and some special tokens."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    letters = [chr(b) for b in kept] + [chr(256 + i) for i in range(len(moved))]
    tokens = _IN_VOCABULARY + sorted(letters) + [merge.replace(" ", "") for merge in _MERGES]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def tokenizer_json(added: int, front: str | None) -> dict[str, Any]:
    """Return a tokenizer.json with the first special tokens as added tokens, and one in front of texts."""
    vocab, byte_level = vocabulary(), {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokens = [{"id": vocab[t], "content": t, **flags} for t in _IN_VOCABULARY[:added]]
    single: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if front:
        single.insert(0, {"SpecialToken": {"id": front, "type_id": 0}})
    around = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {front: {"id": front, "ids": [vocab[front]], "tokens": [front]}} if front else {},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": around if front else None,
        "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": _MERGES},
    }


def sentencepiece_json(added: int, front: str | None) -> dict[str, Any]:
    """Return a tokenizer.json as that of Llama 2: pieces with a space in front, and byte fallback."""
    tokens = _IN_VOCABULARY + [f"<0x{byte:02X}>" for byte in range(256)] + list("▁abcdehint")
    tokens += [merge.replace(" ", "") for merge in _PIECES]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    one = tokenizer_json(added, front)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return one | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": _PIECES, "byte_fallback": True, "fuse_unk": True},
    }


def write_directory(directory: Path, case: Mapping[str, Any]) -> Path:
    """Write a case's files and the tokenizer they belong to."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in case["files"].items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    if case["tokenizer"] is None:
        (directory / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES]), encoding="utf-8")
    else:
        make_json = sentencepiece_json if case.get("sentencepiece") else tokenizer_json
        (directory / "tokenizer.json").write_text(json.dumps(make_json(*case["tokenizer"])))
    return directory


def draw_case(rng: random.Random) -> dict[str, Any]:
    """Return random files of a directory, without what is expected of them."""

    def token(text: str, kind: str) -> Any:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        more = {"__type": "AddedToken", "special": True} if kind == "config" else {}
        return text if rng.random() < 0.6 else {**more, "content": text, **flags}

    config: dict[str, Any] = {}
    for name in _NAMES:
        if (choice := rng.random()) < 0.5:
            config[name] = token(rng.choice(_POOL), "config")
        elif choice < 0.65:
            config[name] = None
    kind = rng.choice(_CLASSES)
    if kind:
        config["tokenizer_class"] = kind
    if rng.random() < 0.4:
        config["add_bos_token"] = rng.random() < 0.5
    if rng.random() < 0.2:
        config["add_eos_token"] = rng.random() < 0.5
    if rng.random() < 0.3:
        config["add_prefix_space"] = rng.random() < 0.5
    if rng.random() < 0.3:
        config["legacy"] = rng.random() < 0.5
    if rng.random() < 0.2:
        config["image_token"] = "<extra>"
    if (choice := rng.random()) < 0.2:
        config["extra_special_tokens"] = rng.sample(_POOL, 2)
    elif choice < 0.3:
        config["additional_special_tokens"] = [token(text, "config") for text in rng.sample(_POOL, 2)]
    elif choice < 0.4:
        config["extra_special_tokens"] = {"think_token": "<think>"}
    n_vocab = len(vocabulary())
    new = [text for text in _POOL if text not in _IN_VOCABULARY]
    if rng.random() < 0.4:
        picked = rng.sample(new, rng.randrange(len(new)))
        decoder = dict(enumerate(_IN_VOCABULARY))  # as save_pretrained writes it: tokenizer.json's and more
        decoder |= {n_vocab + i: text for i, text in enumerate(picked)}
        config["added_tokens_decoder"] = {
            str(i): {"content": text, "special": rng.random() < 0.5, "normalized": False}
            for i, text in decoder.items()
        }
    files: dict[str, Any] = {"config.json": {"model_type": rng.choice(_FAMILIES)}}
    if rng.random() < 0.3:
        names = rng.sample(_NAMES, 2)
        files["special_tokens_map.json"] = {name: token(rng.choice(_POOL), "map") for name in names}
    if rng.random() < 0.2:
        files["added_tokens.json"] = {text: n_vocab + i for i, text in enumerate(rng.sample(new, 2))}
    template = rng.choice(_TEMPLATES)
    place = rng.choice(["config", "list", "file", "several files"])
    if place == "config":
        config["chat_template"] = template
    elif place == "list":
        config["chat_template"] = [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": template},
        ]
    else:
        files["chat_template.jinja"] = template
        if place == "several files":
            files["additional_chat_templates/rag.jinja"] = "documents"
    if rng.random() < 0.9:
        files["tokenizer_config.json"] = config
    whole = [rng.randrange(len(_IN_VOCABULARY) + 1), rng.choice([None, "<s>", "<|endoftext|>"])]
    keep = rng.random() < 0.8 or "LlamaTokenizerFast" in config.values()  # which has no vocab.json
    case = {"files": files, "tokenizer": whole if keep else None}
    if keep and rng.random() < 0.25:
        config["tokenizer_class"] = rng.choice(
            ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]
        )
        files["config.json"] = {"model_type": rng.choice(["llama", "mistral", "phi3"])}
        case["sentencepiece"] = True
    elif keep and any(
        str(name).startswith(("qwen", "Qwen")) for name in (kind, *files["config.json"].values())
    ):
        config.pop("add_prefix_space", None)  # in Transformers it would put a space in front of every word
    return case


def ask_transformers(directory: Path) -> dict[str, Any] | None:
    """Return what Transformers makes of a directory; None if it cannot load it."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(directory)
    except Exception:
        return None
    expected = {"ids": [theirs(text)["input_ids"] for text in TEXTS]}
    expected["texts"] = [theirs.decode(ids, skip_special_tokens=True) for ids in expected["ids"]]
    expected["special_tokens"] = dict(theirs.special_tokens_map)
    if theirs.chat_template is not None:
        chat = {"tokenize": False, "add_generation_prompt": True}
        expected["chat"] = theirs.apply_chat_template(MESSAGES, **chat)
        expected["chat_ids"] = theirs(expected["chat"], add_special_tokens=False)["input_ids"]
    return expected


def main() -> None:
    rng, cases = random.Random(SEED), []
    while len(cases) < N_CASES:
        case = draw_case(rng)
        with tempfile.TemporaryDirectory() as folder:
            expected = ask_transformers(write_directory(Path(folder), case))
        if expected is not None:
            cases.append(case | {"expected": expected})
    text = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    OUT.write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
