"""Stages 4 and 5: train the plain model, then tune a copy of it with the core mask in the loop.

    python weights/train/train.py --data work --out work/plain.pt --steps 6500 --lr 0.008 --seed 1
    python weights/train/train.py --data work --out work/core.pt --teacher weights/minicore-opt

A run writes its checkpoint when done, every --save-every steps and at --time-limit; called again with the
same arguments it goes on from there, bit for bit: batches, splits and betas come from (seed, step) alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from layout import from_hugging_face
from opt import OPT, Shape
from torch import Tensor

END_ID = 0  # <|endoftext|>, every text's first token


@dataclass(frozen=True)
class Settings:
    """The defaults are what the shipped core model was tuned with."""

    steps: int = 5800
    batch: int = 256
    seed: int = 3
    lr: float = 0.01
    warmup: int = 200
    weight_decay: float = 0.1
    muon: bool = True
    window: int = 512  # tokens of a training text
    sampled_share: float = 0.6  # of a batch's texts; the rest is prose
    # From here on: tuning with the mask; used when there is a teacher or scratch is set.
    scratch: bool = False  # start from random weights
    kl: float = 0.5  # weight of the teacher's distribution; 1 - kl is the text's own
    outside: float = 0.15  # weight of the share of activations outside the core
    level_every: int = 300  # steps between two levellings of the neurons (OPT.level); 0: never
    active: float = 0.0  # weight of the mean activation
    dense_share: float = 0.05  # of the texts stay dense throughout
    beta_low: float = 0.07  # beta is drawn log-uniformly between the two, and ...
    beta_high: float = 0.7
    ramp: float = 0.05  # ... raised to a power growing from 0 to 1 over this share of the steps
    shortest: int = 4  # the earliest split; the latest is 7/8 of the context
    split_power: float = 1.5  # of the uniform number a split is drawn with: short prompts get their share
    shape: Shape = field(default_factory=Shape)


class Corpus:
    def __init__(self, folder: Path, device: str, n_ctx: int):
        def load(name: str) -> Tensor:
            return torch.from_numpy(np.load(folder / name).astype(np.int32)).to(device)

        self.prose, self.sampled = load("prose.npy"), load("sampled.npy")
        starts = np.load(folder / "sampled.starts.npy")
        self.starts = starts[starts + n_ctx < len(self.sampled)]
        self.n_ctx = n_ctx

    def batch(
        self, rng: np.random.Generator, n: int, sampled_share: float
    ) -> Tensor:  # -> (n, n_ctx + 1) int64
        """Prose from anywhere, sampled text from the start of a document on; <|endoftext|> first in both."""
        n_sampled = round(n * sampled_share)
        at_prose = rng.integers(0, len(self.prose) - self.n_ctx, n - n_sampled)
        at_sampled = self.starts[rng.integers(0, len(self.starts), n_sampled)]
        reach = torch.arange(self.n_ctx + 1, device=self.prose.device)

        def take(ids: Tensor, at: np.ndarray) -> Tensor:
            return ids[torch.from_numpy(at).to(ids.device)[:, None] + reach]

        ids = torch.cat([take(self.prose, at_prose), take(self.sampled, at_sampled)]).long()
        ids[:, 0] = END_ID
        return ids


def plain_loss(model: OPT, ids: Tensor) -> tuple[Tensor, Tensor]:  # ids (B, T + 1)
    logits = model(ids[:, :-1]).float()
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return loss, loss.detach()[None]


def core_loss(
    model: OPT, teacher: OPT | None, ids: Tensor, split: Tensor, n_kept: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """weights (kl, outside, active) -> the loss; cross-entropy with text and teacher, outside, active."""
    logits, outside, active = model.masked(ids[:, :-1], split, n_kept)
    logits = logits.float()
    normaliser = logits.logsumexp(-1)
    text = taught = (normaliser - logits.gather(-1, ids[:, 1:, None])[..., 0]).mean()
    if teacher is not None:
        with torch.no_grad():
            soft = teacher(ids[:, :-1]).float().softmax(-1)
        taught = (normaliser - (soft * logits).sum(-1)).mean()
    loss = (1 - weights[0]) * text + weights[0] * taught + weights[1] * outside + weights[2] * active
    return loss, torch.stack([text, taught, outside, active]).detach()


def draw_cuts(
    rng: np.random.Generator, s: Settings, progress: float, n_ctx: int
) -> tuple[np.ndarray, np.ndarray]:
    """A split point and a number of kept neurons for each text of a batch."""
    latest = n_ctx * 7 // 8
    split = (s.shortest + (latest - s.shortest) * rng.random(s.batch) ** s.split_power).astype(np.int64)
    split[rng.random(s.batch) < s.dense_share] = n_ctx
    beta = np.exp(rng.uniform(np.log(s.beta_low), np.log(s.beta_high), s.batch))
    beta **= min(1.0, progress / s.ramp) if s.ramp else 1.0
    return split, np.floor(beta * s.shape.n_neurons).astype(np.int64)


def make_optimisers(model: OPT, s: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases (or for all)."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2] if s.muon else []
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": s.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, 0.95), fused=others[0].is_cuda)
    ]
    if matrices:
        optimisers.append(
            torch.optim.Muon(matrices, lr=s.lr, weight_decay=s.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimisers


def save(path: Path, model: OPT, s: Settings, step: int, optimisers: list[torch.optim.Optimizer]) -> None:
    state = {
        "model": model.state_dict(),
        "optimisers": [o.state_dict() for o in optimisers],
        "step": step,
        "settings": asdict(s),
    }
    scratch = path.with_suffix(".part")
    torch.save(state, scratch)
    os.replace(scratch, path)


def load(path: Path, device: str) -> tuple[OPT, dict]:
    """A run's checkpoint, or a folder in Hugging Face layout, which has no state beside the weights."""
    if path.is_dir():
        return from_hugging_face(path, device), {}
    state = torch.load(path, map_location=device, weights_only=True)
    model = OPT(Shape(**state["settings"]["shape"])).to(device)
    model.load_state_dict(state["model"])
    return model, state


class Trainer:
    """One compiled loss for many runs: what differs between variants enters as numbers, not as code."""

    def __init__(self, corpus: Corpus, device: str, compiled: bool):
        self.corpus, self.device = corpus, device
        self.wrap = torch.compile(dynamic=False) if compiled else lambda f: f
        self.plain_loss, self.core_loss = self.wrap(plain_loss), self.wrap(core_loss)

    def run(
        self,
        s: Settings,
        teacher: OPT | None,
        out: Path | None = None,
        *,
        save_every: int = 0,
        time_limit: float = float("inf"),
        look_every: int = 50,
        log: int = 500,
    ) -> OPT:
        """Train from the teacher (else random weights), or go on from the checkpoint `out`."""
        began = time.monotonic()
        torch.manual_seed(s.seed)
        model = OPT(s.shape).to(self.device)
        if teacher is not None and not s.scratch:
            model.load_state_dict(teacher.state_dict())
        optimisers = make_optimisers(model, s)
        first = 0
        if out is not None and out.exists():
            model, state = load(out, self.device)
            if state["settings"] != asdict(s):
                raise SystemExit(
                    f"{out} was made with other settings; give another --out or the same options"
                )
            optimisers, first = make_optimisers(model, s), state["step"]
            for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        amp = torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda"))
        weights = torch.tensor([s.kl, s.outside, s.active], device=self.device)
        total, mark, seen = torch.zeros(1, device=self.device), time.monotonic(), 0
        levelling = self.corpus.batch(np.random.default_rng([s.seed, 1 << 40]), 100, s.sampled_share)[:, :-1]
        levelled = teacher is not None and s.level_every > 0
        if levelled and first == 0:
            model.level(levelling)
        for step in range(first, s.steps):
            rng = np.random.default_rng([s.seed, step])
            ids = self.corpus.batch(rng, s.batch, s.sampled_share)
            scale = min((step + 1) / s.warmup, (s.steps - step) / (s.steps - s.warmup))
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = s.lr * scale
            with amp:
                if teacher is None:
                    loss, parts = self.plain_loss(model, ids)
                else:
                    cuts = draw_cuts(rng, s, step / s.steps, self.corpus.n_ctx)
                    split, n_kept = (torch.from_numpy(x).to(self.device) for x in cuts)
                    loss, parts = self.core_loss(
                        model, teacher if s.kl else None, ids, split, n_kept, weights
                    )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            total, seen = total + parts, seen + 1
            if (step + 1) % log == 0 or step + 1 == s.steps or step - first == 20:
                means = " ".join(f"{x:.4f}" for x in (total / seen).tolist())
                now = time.monotonic()
                rate = seen * s.batch * self.corpus.n_ctx / (now - mark) / 1e6
                print(
                    f"step {step + 1}/{s.steps} losses {means} {rate:.2f} M tokens/s {now - began:.0f} s",
                    flush=True,
                )
                total, mark, seen = torch.zeros_like(total), time.monotonic(), 0
            if levelled and ((step + 1) % s.level_every == 0 or step + 1 == s.steps):
                model.level(levelling)
            late = (step + 1) % look_every == 0 and time.monotonic() - began > time_limit
            if out is not None and (
                late or step + 1 == s.steps or (save_every and (step + 1) % save_every == 0)
            ):
                save(out, model, s, step + 1, optimisers)
            if late:
                break
        return model


@torch.no_grad()
def losses(model: OPT, windows: Tensor, n_prompt: int, beta: float | None) -> Tensor:  # (n, T) -> (n,)
    """Mean loss of the n_prompt tokens after each window's prompt, with its core or (None) densely."""
    result = []
    for ids in windows[:, : 2 * n_prompt].split(25):
        split = torch.full((len(ids),), n_prompt if beta else 2 * n_prompt, device=ids.device)
        n_kept = torch.full((len(ids),), int((beta or 1) * model.shape.n_neurons), device=ids.device)
        logits = model.masked(ids[:, :-1], split, n_kept)[0][:, n_prompt - 1 :].float()
        result.append(F.cross_entropy(logits.transpose(1, 2), ids[:, n_prompt:], reduction="none").mean(1))
    return torch.cat(result)


def report(model: OPT, data: Path, device: str) -> str:
    """One line: dense perplexity, and what core sets make of it, on the held-out mix (prompts 256, 128).

    It ends with the neurons of each layer that fire anywhere in those texts: a layer that dies shows.
    """
    windows = torch.from_numpy(np.load(data / "heldout.npy").astype(np.int64)).to(device)
    source = torch.from_numpy(np.load(data / "heldout.source.npy")).to(device)
    cells = []
    for n_prompt in (256, 128):
        found = {beta: losses(model, windows, n_prompt, beta) for beta in (None, 0.4, 0.3, 0.2, 0.1)}
        for name, rows in {"mix": source >= 0, "prose": source == 0, "sampled": source == 1}.items():
            dense = found[None][rows].mean()
            ratios = (f"{b}:x{(x[rows].mean() - dense).exp():.3f}" for b, x in found.items() if b)
            cells.append(f"{name} {n_prompt} {dense.exp():.3f} {' '.join(ratios)}")
    with torch.no_grad():
        alive = " ".join(map(str, model.alive(windows[:, :-1]).tolist()))
    return " | ".join([*cells, f"alive {alive}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--teacher",
        type=Path,
        help="the plain model, a checkpoint or an exported folder; without it the plain model is trained",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--time-limit", type=float, default=float("inf"), help="seconds after which to save and stop"
    )
    parser.add_argument("--save-every", type=int, default=0)
    for name, value in asdict(Settings()).items():
        if name == "shape":
            for key, size in value.items():
                parser.add_argument(f"--{key.replace('_', '-')}", type=int, default=size)
        elif isinstance(value, bool):
            parser.add_argument(
                f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, default=value
            )
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    shape = Shape(**{key: args[key] for key in asdict(Shape())})
    settings = Settings(**{key: args[key] for key in asdict(Settings()) if key != "shape"}, shape=shape)

    device = args["device"]
    torch.set_float32_matmul_precision("high")
    teacher = load(args["teacher"], device)[0].eval() if args["teacher"] else None
    trainer = Trainer(
        Corpus(args["data"], device, settings.window), device, compiled=device.startswith("cuda")
    )
    print(json.dumps(asdict(settings)))
    model = trainer.run(
        settings,
        teacher,
        args["out"],
        save_every=args["save_every"],
        time_limit=args["time_limit"],
    )
    print(report(model, args["data"], device))


if __name__ == "__main__":
    main()
