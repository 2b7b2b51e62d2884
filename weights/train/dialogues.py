"""Scripts for sampled rows: conversations in the chat template, and documents without it."""

# ruff: noqa: E501

from __future__ import annotations

import numpy as np
import prompts
from openings import LISTS, fill, openings
from streams import END_OF_TEXT, END_OF_TURN, Script
from tokenizers import Tokenizer

SYSTEMS = [
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    prompts.SYSTEM,
    "You are a helpful assistant.",
    "You are a patient teacher.",
    "You are an editor who answers briefly.",
]
SYSTEM_SHARES = [0.6, 0.15, 0.15, 0.05, 0.05]

FOLLOW = """\
Can you explain that in simpler words?
Give me an example.
Why is that important?
What else should I know?
Now say the same in one sentence.
Write it as a list.
How would you explain this to a child?
What are the disadvantages?
Is there anything people often get wrong about it?
Can you go into more detail on the last point?
What happened next?
How did this change over time?
Who was involved?
Rewrite that in a more formal tone.
Rewrite that as a short dialogue.
Make it shorter.
Make it longer and more vivid.
What would a critic say?
Can you compare it with something similar?
Thanks! Now tell me about {topic}.
Let us talk about {topic} instead.
What does this have to do with {topic}?
Give me three questions that I could ask about this.
Please give a title to what you just wrote.
Are you sure? Please check your answer.
Translate the main idea into everyday language.
Which of these is the most important, and why?
How can I use this in daily life?
Write a short poem about it.
Write an email to {name} about this.""".split("\n")

PASSAGE = r"""Summarize the following text in two or three sentences.\n\n{passage}
{passage}\n\nWhat is the main idea of this text?
Read the passage and answer the questions.\n\n{passage}\n\nQuestion 1: Who or what is it about? Question 2: What happens?
Rewrite the following passage in plain modern English.\n\n{passage}
Rewrite this for a young reader:\n\n{passage}
List the main points of this text:\n\n{passage}
{passage}\n\nContinue this text in the same style.
Text: {passage}\n\nQuestion: What does the author feel about it, and how can you tell?
Write a title and a one-sentence summary for this text:\n\n{passage}
Correct any mistakes in the following text and explain the changes.\n\n{passage}
Here is a passage:\n\n{passage}\n\nWrite three questions about it and answer each.
Turn the following into bullet points:\n\n{passage}""".split("\n")
PASSAGE_FOLLOW = """\
Which words in the text show that?
Make the summary shorter.
What kind of text is it?
What might happen next?
Who is speaking in the text?
When do you think it was written?
Describe the people in the text.
What is the mood of the passage?
Now write a short text of your own on the same subject.
Explain the most difficult sentence.""".split("\n")

CODE = r"""Write a {language} function that works with {thing}.
Explain what this code does:\n\n```python\n{snippet}\n```
Find the bug in this code:\n\n```python\n{snippet}\n```
Add comments and a docstring to this function:\n\n```python\n{snippet}\n```
What is the difference between a list and {thing} in {language}?
How do I sort {thing} in {language}?
Rewrite this function in JavaScript:\n\n```python\n{snippet}\n```
Write a test for this function:\n\n```python\n{snippet}\n```""".split("\n")
CODE_FOLLOW = """\
How would you test it?
What happens if the input is empty?
Explain it line by line.
Can you make it faster?
Rewrite it without a loop.
Show me how to call it.""".split("\n")
SNIPPETS = [
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)",
    "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))",
    "def count_words(path):\n    counts = {}\n    with open(path) as file:\n        for line in file:\n"
    "            for word in line.split():\n                counts[word] = counts.get(word, 0) + 1\n    return counts",
    "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    "        self.items.append(item)\n\n    def pop(self):\n        return self.items.pop(0)",
    "def search(items, wanted):\n    low, high = 0, len(items) - 1\n    while low <= high:\n"
    "        middle = (low + high) // 2\n        if items[middle] == wanted:\n            return middle\n"
    "        if items[middle] < wanted:\n            low = middle + 1\n        else:\n            high = middle - 1\n"
    "    return -1",
    "def flatten(nested):\n    return [x for inner in nested for x in inner]",
    "def celsius(f):\n    return f - 32 * 5 / 9",
    "import random\n\ndef shuffle(items):\n    for i in range(len(items) - 1, 0, -1):\n"
    "        j = random.randint(0, i)\n        items[i], items[j] = items[j], items[i]",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3 ORDER BY name;",
]

KIND_SHARES = {"topic": 0.36, "passage": 0.22, "code": 0.07, "free": 0.35}
N_TURNS = 12


def pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def turns(kind: str, rng: np.random.Generator, passages: list[str], topical: list[str]) -> list[str]:
    """Return what the user says in one conversation, turn by turn."""
    if kind == "topic":
        rest = [
            fill(pick(FOLLOW, rng), rng) if rng.random() < 0.7 else pick(topical, rng) for _ in range(N_TURNS)
        ]
        return [pick(topical, rng), *rest]
    if kind == "passage":
        first = pick(PASSAGE, rng).replace("\\n", "\n").replace("{passage}", pick(passages, rng))
        return [first, *(fill(pick(PASSAGE_FOLLOW + FOLLOW[:10], rng), rng) for _ in range(N_TURNS))]
    asked = [fill(pick(CODE, rng).replace("\\n", "\n").replace("{snippet}", "\0"), rng) for _ in range(4)]
    asked = [text.replace("\0", pick(SNIPPETS, rng)) for text in asked]
    return [turn for text in asked for turn in (text, *(pick(CODE_FOLLOW, rng) for _ in range(2)))]


def conversation(kind: str, rng: np.random.Generator, passages: list[str], topical: list[str]) -> list[str]:
    """Return the forced pieces of one conversation. In a "free" one the model writes both sides."""
    start = f"<|im_start|>system\n{rng.choice(SYSTEMS, p=SYSTEM_SHARES)}<|im_end|>\n<|im_start|>user\n"
    if kind == "free":
        return [start, *["\n<|im_start|>assistant\n", "\n<|im_start|>user\n"] * N_TURNS]
    said = turns(kind, rng, passages, topical)
    ask = "<|im_end|>\n<|im_start|>assistant\n"
    return [start + said[0] + ask, *(f"\n<|im_start|>user\n{text}{ask}" for text in said[1:])]


def scripts(
    n: int, seed: int, tokenizer: Tokenizer, passages: list[str],
    chat_share: float = 0.45, min_p: tuple[float, float] = (0.03, 0.03),
) -> list[Script]:  # fmt: skip
    """Return scripts of n rows, conversations first. Passages are quoted in questions and open some fiction.

    Documents are sampled at temperature 1. Each row has its own min-p, drawn log-uniformly between the two.
    """
    rng = np.random.default_rng(seed)
    n_chat = round(n * chat_share)
    topical = [p.prompt for p in prompts.draw(4096, seed)]
    kinds = rng.choice(list(KIND_SHARES), size=n_chat, p=list(KIND_SHARES.values()))
    rows: list[tuple[str, list[str]]] = [
        (f"chat {kind}", conversation(kind, rng, passages, topical)) for kind in kinds
    ]
    while len(rows) < n:
        kind, texts = openings(8, rng)
        if kind == "fiction" and rng.random() < 0.5:
            texts = [" ".join(pick(passages, rng).split()[: rng.integers(4, 24)]) for _ in texts]
        rows.append((kind, [f"<|endoftext|>{texts[0]}", *texts[1:]]))
    flat = [piece for _, pieces in rows for piece in pieces]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    result = []
    for i, (kind, pieces) in enumerate(rows):
        ids = [next(encoded).ids for _ in pieces]
        if i < n_chat:
            result.append(Script(kind, ids, 0.9, 0.06, 2.0, END_OF_TURN))
        else:
            drawn = float(np.exp(rng.uniform(*np.log(min_p))))
            result.append(Script(kind, ids, 1.0, drawn, 1.0, END_OF_TEXT))
    return result


def passages_of(text: str, n: int, seed: int) -> list[str]:
    """Draw n paragraphs of 40 to 180 words from prose."""
    rng = np.random.default_rng(seed)
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    fitting = [p for p in paragraphs if 40 <= len(p.split()) <= 180]
    return [fitting[i] for i in rng.integers(0, len(fitting), n)]


assert all(field in LISTS for field in ("topic", "language", "thing", "name"))
