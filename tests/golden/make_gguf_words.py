"""Record how llama.cpp tokenizes short texts under each pre-tokenizer name: gguf-words.json.

    python tests/golden/make_gguf_words.py

Needs llama-cpp-python (the file was made with 0.3.36). The vocabulary is trained on unsplit text, so its
merges cross the places where pre-tokenizers split, and a wrong split gives other ids. The texts have no
combining marks, no accented capitals and no ideographic spaces, for which llama.cpp's expressions differ from
those of the models' own tokenizer.json files.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from minicore.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from tests.helpers import checkpoints as make

PARTS = (
    *("Hello", " world", "I'LL", "don't", "we've", "'s", "12345", "1234567890", " 42", "3.14", "1,000"),
    *(
        "\n",
        "\n\n",
        "  ",
        "   ",
        "\t",
        "\r\n",
        " ",
        ", ",
        "...",
        "!?",
        " €",
        "'",
        "`q`",
        "$5",
        "<=>",
        "~",
        "^|",
    ),
    *("東京タワー", "한국어", "größer", "NAIVE", "camelCase", "HTTPServer", "/usr/bin", "a_b", "{x}", "x=1;"),
    *("🙂", "#tag", "—", "“quoted”", "。", "₂²½", "ABC def", "a", "B", "1", "\xa0"),
)
N_TOKENS, N_TEXTS = 1000, 30
# minicore has the expressions of these models' tokenizer.json; what llama.cpp has differs for any text
APART = ("tiny_aya", "cohere2moe")


def main() -> None:
    from llama_cpp import Llama

    rng = random.Random(0)

    def text(n: int) -> str:
        return "".join(rng.choice(PARTS) for _ in range(n))

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=N_TOKENS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([text(6) for _ in range(2000)], trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    texts, ids = [text(rng.randint(1, 12)) for _ in range(N_TEXTS)], {}
    names = {alike: name for name, alike in reversed(PRE_TOKENIZERS.items()) if name not in (*APART, "gpt2")}
    with tempfile.TemporaryDirectory() as folder:
        for name in names.values():
            more = metadata(merges, name)
            config = make.GGUF_LLAMA | {"vocab_size": len(more["tokenizer.ggml.tokens"])}
            path = make.write_gguf(Path(folder) / "vocabulary.gguf", "llama", config, {}, more=more)
            model = Llama(str(path), vocab_only=True, verbose=False)
            ids[name] = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    found = {"merges": [" ".join(merge) for merge in merges], "texts": texts, "ids": ids}
    target = Path(__file__).with_name("gguf-words.json")
    target.write_text(json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def metadata(merges: list[list[str]], pre: str) -> dict[str, object]:
    """Return GGUF metadata of the byte-level BPE that these merges make."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": list(dict.fromkeys(tokens)),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


if __name__ == "__main__":
    main()
