"""The pre-tokenizers that GGUF files name: how each splits a text into words before byte-pair merging.

A GGUF file stores only a name (``tokenizer.ggml.pre``). llama.cpp's list (src/llama-vocab.cpp) says which
regular expressions a name stands for. Where llama.cpp approximates an expression of a model's tokenizer.json,
this table has the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is split into words before byte-pair merging.

    Attributes
    ----------
    splits : tuple of str
        Regular expressions, applied one after the other. A match is a piece, and so is the text between two
        matches; the next expression splits each piece further.
    ignore_merges : bool
        Whether a word that is a token is taken whole, without merges.
    adds_bos : bool
        Whether BOS is added if the file does not say.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def library_object(self) -> tokenizers.pre_tokenizers.PreTokenizer:
        """Return the same splits, then the byte-level step, as an object of the ``tokenizers`` library."""
        from tokenizers import Regex, pre_tokenizers

        steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*steps, byte_level])


def _any(*alternatives: str) -> str:
    return "|".join(alternatives)


_DIGIT = r"\p{N}"
_UP_TO_THREE_DIGITS = r"\p{N}{1,3}"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions, in any case
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SPACES_BY_LINE = r"\s*[\r\n]|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = _any(_SUFFIX, _WORD, _UP_TO_THREE_DIGITS, _SYMBOLS, _SPACES)
QWEN2 = _any(_SUFFIX, _WORD, _DIGIT, _SYMBOLS, _SPACES)
_UFAKZEKA = _any(_WORD, _DIGIT, _SYMBOLS, _SPACES)
_MINICPM5 = _any(_SUFFIX, _WORD, r"\p{N}+", _SYMBOLS, _SPACES)
_MARKED_WORD = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = _any(_SUFFIX, _MARKED_WORD, _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _SPACES)
_SEED_CODER = _any(_SUFFIX, _WORD, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)
_BAILING = _any("'(?i:[sdmt]|ll|ve|re)", _WORD, _DIGIT, _SYMBOLS, _SPACES_BY_LINE)
_PHRASE = r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"
_EXAONE_MOE = _any(_SUFFIX, _PHRASE, _DIGIT, r" ?[^\s\p{L}\p{N}]+[\r\n/]?", _SPACES_BY_LINE)
_RUNS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
_JAIS2 = _any(_SUFFIX, _WORD, _UP_TO_THREE_DIGITS, _SYMBOLS, r"\s*[\r\n]+", _RUNS, r"\s")
# Words by case: capitals, then small letters. Marks and letters without case may be in either part.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SMALL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITAL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SYMBOLS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
TEKKEN = _any(_SMALL, _CAPITAL, _DIGIT, _SYMBOLS_AND_SLASHES, _SPACES)
_CASES = f"{_SMALL}{_SUFFIX}?|{_CAPITAL}{_SUFFIX}?"
GPT4O = _any(_CASES, _UP_TO_THREE_DIGITS, _SYMBOLS_AND_SLASHES, _SPACES)
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_SIGNED_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = (_UP_TO_THREE_DIGITS, _CJK, _any(_SIGNED_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _SPACES))
_SPARK_WORDS = _any(_SIGNED_WORD, r" ?[\p{P}\p{S}]+", r"[\r\n]|\s+(?!\S)|\s+")
_SPARK = (_UP_TO_THREE_DIGITS, _CJK, _SPARK_WORDS, _DIGIT)
_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIAN, _DIGIT)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CHAMELEON = (
    *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", _DIGIT),
    *(r"[\p{P}!-/:-@\[-`{-~]", GPT2),
)

_LLAMA3 = PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True)
_ALIKE = [  # pre-tokenizers, and the names that stand for them
    (PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", _THREE_DIGITS)), "default"),
    (_LLAMA3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (replace(_LLAMA3, ignore_merges=False, adds_bos=False), "dbrx smaug-bpe glm4 chatglm-bpe"),
    (
        PreTokenizer((GPT2,)),
        "gpt-2 gpt2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert "
        "jina-es jina-de jina-v2-es jina-v2-de",
    ),
    (PreTokenizer((_DIGIT, GPT2)), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (
        PreTokenizer((QWEN2,)),
        "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2 kormo f2llmv2",
    ),
    (PreTokenizer((_QWEN35,)), "qwen35"),
    (PreTokenizer(("[^\\n]+|[\\n]+", QWEN2)), "laguna"),
    (PreTokenizer((_UFAKZEKA,)), "ufakzeka"),
    (PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, _THREE_DIGITS)), "falcon"),
    (PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True), "tekken"),
    (PreTokenizer((GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O)), "tiny_aya cohere2moe"),
    (PreTokenizer(_DEEPSEEK3), "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (PreTokenizer(_DEEPSEEK_CODER), "deepseek-coder"),
    (PreTokenizer(_SPARK), "spark2_5"),
    (PreTokenizer((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_BLOOM, _DIGIT)), "viking"),
    (PreTokenizer((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((_SEED_CODER,)), "seed-coder"),
    (PreTokenizer((_EXAONE_MOE,)), "exaone-moe"),
    (PreTokenizer((_JAIS2,)), "jais-2"),
    (PreTokenizer((_UP_TO_THREE_DIGITS, _MINICPM5), ignore_merges=True), "minicpm5"),
    (PreTokenizer(_CHAMELEON, adds_bos=True), "chameleon"),
]

PRE_TOKENIZERS = {name: alike for alike, names in _ALIKE for name in names.split()}
