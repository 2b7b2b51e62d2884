"""Tune SmolLM2 for core sets: under the mask, the weights learn to match the untuned model.

    python weights/train/tune.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data work --out work/tuned.pt

All weights except the embedding are tuned. A run saves at --time-limit and at its end. Called again with the
same arguments it continues from there, on a CPU with the same bits. --start begins a new run from the weights
of another, with new optimisers.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import llama
import numpy as np
import torch
from distil import divergence
from judge import show, table
from llama import Cut, Llama
from mixture import KINDS, Mixture
from muon import Muon
from neurons import COUNTS, ENERGY
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    steps: int = 4000
    batch: int = 32
    window: int = 1024  # tokens of a text
    seed: int = 1
    lr: float = 2e-3
    norm_lr: float = 0.25  # learning rate of the norms, as a share of lr
    warmup: int = 100
    outside: float = 0.15  # weight of the energy outside the core in the loss
    pull: float = 0.0  # a step moves the matrices lr * pull of the way back to the untuned ones
    chat: float = 0.35  # shares of the texts in a batch; the rest is prose
    plain: float = 0.42
    dense_share: float = 0.06  # share of texts that stay dense
    counts_share: float = 0.0  # share of texts whose sets are chosen by CoreInfer's counts, not by energy
    whole_share: float = 0.75  # share of texts that keep the whole first layer
    beta_low: float = 0.1  # beta is drawn log-uniformly between the two, and ...
    beta_high: float = 0.7
    ramp: float = 0.05  # ... raised to a power growing from 0 to 1 over this share of the steps
    shortest: int = 8  # the earliest split; the latest is 7/8 of the window
    split_power: float = 1.5  # of the uniform number a split is drawn with: short prompts get their share

    @property
    def shares(self) -> tuple[float, ...]:
        return self.chat, self.plain, 1 - self.chat - self.plain


def draw_cut(rng: np.random.Generator, s: Settings, progress: float, n_neurons: int, device: str) -> Cut:
    latest = s.window * 7 // 8
    split = (s.shortest + (latest - s.shortest) * rng.random(s.batch) ** s.split_power).astype(np.int64)
    split[rng.random(s.batch) < s.dense_share] = s.window
    beta = np.exp(rng.uniform(np.log(s.beta_low), np.log(s.beta_high), s.batch))
    beta **= min(1.0, progress / s.ramp) if s.ramp else 1.0
    rule = np.where(rng.random(s.batch) < s.counts_share, COUNTS, ENERGY)
    whole = rng.random(s.batch) < s.whole_share
    arrays = (split, np.floor(beta * n_neurons).astype(np.int64), rule, whole)
    return Cut(*(torch.from_numpy(x).to(device, non_blocking=True) for x in arrays))


def losses(
    student: Llama, teacher: Llama, ids: Tensor, cut: Cut, outside_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the divergence of each token (B, T), and the share of energy outside the core."""
    with torch.no_grad():
        taught = teacher.hidden(ids)
    hidden, outside = student.masked(ids, cut)
    nats = divergence(hidden, taught, teacher.embed.to(hidden.dtype))
    share = outside.sum() / ((after_split(ids, cut)).sum() + 1e-6)
    return nats.mean() + outside_weight * share, nats.detach(), share.detach()


def after_split(ids: Tensor, cut: Cut) -> Tensor:  # -> (B, T) bool: tokens that use only core neurons
    return torch.arange(ids.shape[1], device=ids.device) >= cut.split[:, None]


class Tally:
    """Mean divergence before and after the split, and share of the loss, by kind of text."""

    def __init__(self, device: str):
        self.sums = torch.zeros(2 * len(KINDS), 2, device=device)
        self.outside = torch.zeros(2, device=device)

    def add(self, nats: Tensor, kinds: Tensor, after: Tensor, share: Tensor) -> None:
        cell = (kinds[:, None] * 2 + after).flatten()
        pairs = torch.stack([nats.flatten(), torch.ones_like(nats).flatten()], 1)
        self.sums.index_add_(0, cell, pairs)
        self.outside += torch.stack([share, torch.ones_like(share)])

    def read(self) -> str:
        sums, outside = self.sums.cpu().numpy(), self.outside.cpu().numpy()
        means = sums[:, 0] / np.maximum(sums[:, 1], 1)
        total = max(sums[:, 0].sum(), 1e-9)
        shares = sums[:, 0].reshape(-1, 2).sum(1) / total
        cells = [
            f"{kind} {before:.4f}/{after:.4f} ({share:.0%})"
            for kind, (before, after), share in zip(KINDS, means.reshape(-1, 2), shares, strict=True)
        ]
        return f"kl {total / sums[:, 1].sum():.4f} {' '.join(cells)} outside {outside[0] / outside[1]:.3f}"


def make_optimisers(model: Llama, s: Settings) -> list[torch.optim.Optimizer]:
    d_q = model.shape.n_heads * model.shape.d_head
    d_kv = model.shape.n_kv_heads * model.shape.d_head
    muon = Muon(model.matrices(), [[d_q, d_kv, d_kv], None, None, None], s.lr)
    norms = torch.optim.AdamW(
        [model.norm1, model.norm2, model.norm], lr=s.lr * s.norm_lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    for optimiser, share in ((muon, 1.0), (norms, s.norm_lr)):
        for group in optimiser.param_groups:
            group["share"] = share
    return [muon, norms]


@torch.no_grad()
def draw_back(matrices: list[Tensor], anchors: list[Tensor], share: float) -> None:
    """Move matrices a share of the way back to where they came from.

    What tuning changes needlessly hurts text that the corpus does not hold. What the loss needs, the gradient
    restores.
    """
    torch._foreach_lerp_(matrices, anchors, share)


def save(path: Path, model: Llama, s: Settings, step: int, optimisers: list[torch.optim.Optimizer]) -> None:
    state = {"model": model.state_dict(), "shape": asdict(model.shape), "settings": asdict(s), "step": step}
    state["optimisers"] = [o.state_dict() for o in optimisers]
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Llama, dict]:
    """Read a checkpoint, or a GGUF file, which holds no optimiser state."""
    if path.suffix == ".gguf":
        return llama.load(path, dtype), {}
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Llama(llama.Shape(**state["shape"]), dtype)
    model.load_state_dict(state["model"])
    return model, state


def run(
    s: Settings, teacher: Llama, start: Llama, data: Mixture, out: Path | None = None, *,
    time_limit: float = float("inf"), look_every: int = 20, log: int = 100,
    texts: dict[str, Tensor] | None = None, judge_every: int = 0,
) -> Llama:  # fmt: skip
    """Tune a copy of `start`, or continue from the checkpoint `out`; all models are on the data's device.

    Every `judge_every` steps the model is saved and measured on `texts`.
    """
    began, device = time.monotonic(), data.device
    model = Llama(start.shape, start.dtype).to(device)
    model.load_state_dict(start.state_dict())
    optimisers, first = make_optimisers(model, s), 0
    if out is not None and out.exists():
        saved, state = load(out)
        if state["settings"] != asdict(s):
            raise SystemExit(f"{out} was made with other settings; give another --out or the same options")
        model.load_state_dict(saved.state_dict())
        for optimiser, old in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(old)
        first = state["step"]
    else:
        model.lean_positive(data.batch(np.random.default_rng([s.seed, 1 << 40]), s.shares, s.batch)[0])
    anchors = model.anchors(teacher)
    tally, mark, marked = Tally(device), time.monotonic(), first
    for step in range(first, s.steps):
        rng = np.random.default_rng([s.seed, step])
        ids, kinds = data.batch(rng, s.shares, s.batch)
        cut = draw_cut(rng, s, step / s.steps, model.shape.n_neurons, device)
        scale = min((step + 1) / s.warmup, (s.steps - step) / max(s.steps - s.warmup, 1))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = s.lr * group["share"] * scale
        loss, nats, share = losses(model, teacher, ids, cut, s.outside)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if s.pull:
            draw_back(model.matrices(), anchors, s.lr * scale * s.pull)
        tally.add(nats, kinds, after_split(ids, cut), share)
        if (step + 1) % log == 0 or step + 1 == s.steps or step - first == 9:
            said, now = tally.read(), time.monotonic()
            rate = (step + 1 - marked) * s.batch * s.window / (now - mark) / 1e3
            print(f"step {step + 1}/{s.steps} {said} {rate:.0f} k tokens/s {now - began:.0f} s", flush=True)
            tally, mark, marked = Tally(device), now, step + 1
        late = (step + 1) % look_every == 0 and time.monotonic() - began > time_limit
        judged = bool(judge_every) and (step + 1) % judge_every == 0
        if out is not None and (late or judged or step + 1 == s.steps):
            save(out, model, s, step + 1, optimisers)
        if judged:
            print(
                show(table(model, texts or {}, betas=(0.2, 0.4), rules=("griffin", "stability"))), flush=True
            )
        if late:
            break
    return model


def report_texts(data: Mixture, folder: Path) -> dict[str, Tensor]:
    """Return windows (n, 513) to measure on: held-out rows of each sampled kind, and folder/judge.*.npy."""
    texts = {kind: rows[:64, :513] for kind, rows in data.heldout.items()}
    for path in sorted(folder.glob("judge.*.npy")):
        texts[path.name.split(".")[1]] = torch.from_numpy(np.load(path).astype(np.int32)).to(data.device)
    return texts


def add_settings(parser: argparse.ArgumentParser) -> None:
    for field in fields(Settings):
        kind = {"int": int, "float": float}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="untuned GGUF file, the teacher")
    parser.add_argument(
        "--start", type=Path, help="weights to start from, a checkpoint or GGUF file (default: the teacher)"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), help="seconds after which to save and stop"
    )
    parser.add_argument(
        "--judge-every", type=int, default=0, help="save and measure on judge.*.npy after this many steps"
    )
    add_settings(parser)
    args = vars(parser.parse_args(argv))
    s, device = Settings(**{f.name: args[f.name] for f in fields(Settings)}), args["device"]
    torch.set_float32_matmul_precision("high")
    Llama.compiled = device.startswith("cuda")
    dtype = torch.bfloat16 if Llama.compiled else torch.float32
    teacher = load(args["model"], dtype)[0].to(device).requires_grad_(False)
    start = load(args["start"], dtype)[0].to(device) if args["start"] else teacher
    data = Mixture(args["data"], device, s.window)
    print(json.dumps(asdict(s)), flush=True)
    texts = report_texts(data, args["data"])
    others = {name: text for name, text in texts.items() if name not in KINDS}
    model = run(
        s, teacher, start, data, args["out"],
        time_limit=args["time_limit"], texts=others, judge_every=args["judge_every"],
    )  # fmt: skip
    for whole in (True, False):
        print("first layer whole" if whole else "all layers masked")
        print(show(table(model, texts, rules=("griffin", "stability"), whole=whole)), flush=True)


if __name__ == "__main__":
    main()
