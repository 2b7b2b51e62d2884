"""Stage 1: sample the topical half of the corpus from SmolLM2-135M-Instruct.

    python weights/train/sample.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out work --device cuda

Writes OUT/sampled.jsonl (a document a line: domain, topic, form, prompt, reply; junk is left out) and
OUT/sampled.counts.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import prompts
import torch
from smollm2 import SmolLM2, load_gguf, load_tokenizer
from tokenizers import Tokenizer

CHAT = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
ASSISTANT = re.compile(
    r"\b(as an ai|language model|i'm sorry|i am sorry|i cannot|i can't (assist|help)|smollm|hugging face"
    r"|here('s| is) (a|an|the)|in this (essay|letter|response))\b",
    re.I,
)
PLACEHOLDER = re.compile(r"\[[^\]]*\]|<[^>]*>|https?:|www\.|```|[{}\\|_=]")


def cut(text: str, finished: bool) -> str:
    """Tidy a reply: no Markdown marks, and nothing after the last full sentence if it was cut off."""
    text = re.sub(r"\*+|^#+ *", "", text.strip(), flags=re.M)
    text = re.sub(r"\s*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()
    if text.count('"') == 2 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if not finished:
        ends = [m.end() for m in re.finditer(r'[.!?]["\')]?(?=\s|$)', text)]
        text = text[: ends[-1]] if ends else ""
    return text


def verdict(text: str) -> str:
    """'kept', or why the text is junk."""
    words = text.lower().split()
    if len(words) < 40:
        return "short"
    if ASSISTANT.search(text[:300]):
        return "assistant talk"
    if PLACEHOLDER.search(text):
        return "placeholder or markup"
    if sum(ord(c) > 126 and c not in "’‘“”–—é°½¼" for c in text) > 2:
        return "not English"
    if text[-1] not in ".!?\"')’”" and "\n" not in text[-200:]:
        return "no end"
    grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if sum(n - 1 for n in grams.values()) > 0.12 * len(words):
        return "repetition"
    if len(set(words)) < 0.35 * len(words) ** 0.95:
        return "few words"
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) - len(set(lines)) > 1:
        return "repeated lines"
    return "kept"


_tokenizer: Tokenizer


def start_worker(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def finish(tails: list[list[int]], max_new: int) -> list[tuple[str, str]]:
    """Replies as ids -> (verdict, tidied text) each; runs in worker processes, beside the GPU."""
    texts = _tokenizer.decode_batch(tails, skip_special_tokens=True)
    tidied = [cut(text, finished=len(tail) < max_new) for tail, text in zip(tails, texts, strict=True)]
    return [(verdict(text), text) for text in tidied]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M-Instruct as .gguf")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4096, help="prompts decoded side by side")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--max-new", type=int, default=320)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--min-p", type=float, default=0.1)
    parser.add_argument(
        "--penalty",
        type=float,
        default=2.0,
        help="taken from the logit of a token that would repeat four in a row",
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--time-limit",
        type=float,
        default=float("inf"),
        help="seconds after which the batch at work is dropped",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    fields, tensors = load_gguf(args.model)
    tokenizer = load_tokenizer(fields)
    model = SmolLM2(
        fields, tensors, args.device, torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    )
    grid = prompts.draw(args.rows * args.batches, args.seed)
    chats = [CHAT.format(system=prompts.SYSTEM, user=p.prompt) for p in grid]
    ids = [e.ids for e in tokenizer.encode_batch(chats, add_special_tokens=False)]
    generate = model.generator(
        args.rows,
        max(map(len, ids)),
        args.max_new,
        temperature=args.temperature,
        min_p=args.min_p,
        penalty=args.penalty,
    )
    start, n_tokens = time.monotonic(), 0
    late = lambda: time.monotonic() - start > args.time_limit  # noqa: E731
    with ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker, (tokenizer,)) as pool:
        finished = []
        for batch in range(args.batches):
            tails = generate(
                ids[batch * args.rows : (batch + 1) * args.rows], args.seed * 100_003 + batch, late
            )
            if late():
                break
            n_tokens += sum(map(len, tails))
            finished.append(pool.submit(finish, tails, args.max_new))
            print(f"batch {batch}: {n_tokens} tokens, {time.monotonic() - start:.1f} s", flush=True)
        replies = [reply for future in finished for reply in future.result()]

    counts: Counter[str] = Counter()
    seen: set[str] = set()
    with open(args.out / "sampled.jsonl", "w", encoding="utf-8") as file:
        for prompt, (why, text) in zip(grid, replies, strict=False):
            if why == "kept" and text[:200] in seen:
                why = "seen before"
            seen.add(text[:200])
            counts[why] += 1
            if why == "kept":
                file.write(json.dumps({**asdict(prompt), "reply": text}, ensure_ascii=False) + "\n")
    settings = {
        k: v
        for k, v in vars(args).items()
        if k in ("rows", "max_new", "temperature", "min_p", "penalty", "seed")
    }
    summary = {**settings, "batches": len(finished), "sampled_tokens": n_tokens, "documents": dict(counts)}
    (args.out / "sampled.counts.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
