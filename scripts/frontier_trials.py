"""Ways to lose less than GRIFFIN with the same number of neurons: the trials of docs/quality.md.

Usage: python scripts/frontier_trials.py TEXT -m MODEL [--passages 6] [-o ROWS.jsonl]

Each way is measured as `minicore eval quality` measures predictors: a prompt of 256 tokens, and the next 256
read with the neurons chosen from the prompt. Prints KL(dense || core), also relative to GRIFFIN's on the same
passages. With -o, a run that was stopped resumes.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import minicore as mc
from minicore.backends import Backend, make_backend
from minicore.backends.numpy import NumpyBackend
from minicore.bootstrap import bootstrap
from minicore.core.budgets import share, uniform
from minicore.evaluation.quality import Conditions, Reading
from minicore.evaluation.texts import passages
from minicore.files import atomic_write
from minicore.forward import prefill
from minicore.kv_cache import KVCache
from minicore.model import Model

Array = np.ndarray
HALF_LIFE = 64  # tokens, of the recent prompt's weight


class Prompt:
    """Activations, up projections and norms of the residual stream from a dense reading of a text."""

    def __init__(self, model: Model, ids: Array) -> None:
        seen: dict[str, list[Array]] = {}

        def collect(name: str, value: Array) -> None:
            if name.endswith(("mlp.hook_post", "mlp.hook_pre_linear")):
                seen.setdefault(name, []).append(value.copy())
            if name.endswith("hook_resid_mid"):
                seen.setdefault(name, []).append(np.linalg.norm(value, axis=1))

        prefill(model, ids, KVCache(model.config, len(ids)), collect)
        n_layers = range(model.config.n_layers)
        # the first token is an attention sink, with activations unlike all others
        whole = {name: np.concatenate(parts)[1:].astype(np.float64) for name, parts in seen.items()}
        self.a = [whole[f"blocks.{i}.mlp.hook_post"] for i in n_layers]
        self.up = [
            np.sqrt(np.square(whole[f"blocks.{i}.mlp.hook_pre_linear"]).mean(axis=0)) for i in n_layers
        ]
        self.resid = [whole[f"blocks.{i}.hook_resid_mid"] for i in n_layers]
        self.energy = [np.square(a / np.linalg.norm(a, axis=1, keepdims=True)) for a in self.a]
        self.griffin = dict(enumerate(e.mean(axis=0) for e in self.energy))
        self.mean = np.stack([a.mean(axis=0) for a in self.a])


class Trials:
    """A model, statistics of other texts, and the ways of choosing sets."""

    def __init__(
        self, backend: Backend, others: list[Array], conditions: Conditions, readings: list[Reading]
    ) -> None:
        self.backend, model = backend, backend.model
        self.model, self.n_layers, self.n = model, model.config.n_layers, model.config.n_neurons
        self.prior, self.mean = dict.fromkeys(range(self.n_layers), np.zeros(self.n)), np.zeros(1)
        for ids in others:
            read = Prompt(model, ids)
            self.prior = {i: score + read.griffin[i] / len(others) for i, score in self.prior.items()}
            self.mean = self.mean + read.mean / len(others)
        self.w_out = [np.linalg.norm(block["mlp.w_out"], axis=1) for block in model.blocks]
        self.weight = self._sensitivity(readings)

    def _sensitivity(self, readings: list[Reading]) -> Array:  # -> (n_layers,)
        """Return each layer's cost per share of energy dropped: the KL of halving only that layer."""
        cost = np.zeros((len(readings), self.n_layers))
        for row, reading in zip(cost, readings, strict=True):
            griffin = Prompt(self.model, reading.passage.ids[: reading.conditions.prompt_tokens]).griffin
            for i in range(self.n_layers):
                core = self.core(uniform({i: griffin[i]}, [0.5]))
                dropped = 1 - griffin[i][core.neurons[i]].sum()
                row[i] = reading.score(self.backend.restrict(core))["kl"] / dropped
        return cost.mean(axis=0)

    def core(self, neurons: dict[int, Array]) -> mc.CoreSet:
        """Return a core set of the model."""
        return mc.CoreSet(neurons, self.n, self.n_layers)

    def pooled(self, scores: dict[int, Array], beta: float) -> mc.CoreSet:
        """Keep the best neurons of all layers taken together."""
        s = np.stack([scores[i] for i in range(self.n_layers)])
        best = np.argsort(-s, axis=None, kind="stable")[: math.floor(beta * self.n) * self.n_layers]
        kept = np.zeros(s.size, bool)
        kept[best] = True
        return self.core({i: np.flatnonzero(row) for i, row in enumerate(kept.reshape(s.shape))})

    def dense_ends(self, scores: dict[int, Array], beta: float, first: int, last: int) -> mc.CoreSet:
        """Keep all of the first and last layers, and correspondingly less of the others."""
        inner = range(first, self.n_layers - last)
        rest = (beta * self.n_layers - first - last) / len(inner)
        return self.core(uniform({i: scores[i] for i in inner}, [rest] * len(inner)))

    def sets(self, p: Prompt, beta: float) -> dict[str, mc.CoreSet]:
        """Return one prompt's sets, which all keep the same number of neurons."""
        g, layers, betas = p.griffin, range(self.n_layers), [beta] * self.n_layers

        def flat(scores: Callable[[int], Array]) -> mc.CoreSet:
            return self.core(uniform({i: scores(i) for i in layers}, betas))

        age = len(p.energy[0]) - 1 - np.arange(len(p.energy[0]))
        recent = 0.5 ** (age / HALF_LIFE)
        both = {i: g[i] + self.prior[i] for i in layers}
        return {
            "griffin": flat(lambda i: g[i]),
            "times |w_out|": flat(lambda i: g[i] * self.w_out[i] ** 2),
            "|a| not normalised": flat(lambda i: np.square(p.a[i]).mean(axis=0)),
            "mean of |a| / ||a||": flat(lambda i: np.sqrt(p.energy[i]).mean(axis=0)),
            "recent tokens count more": flat(lambda i: recent @ p.energy[i]),
            "other texts alone": flat(lambda i: self.prior[i]),
            "prompt + other texts": flat(lambda i: both[i]),
            "budget share": self.core(share(g, betas)),
            "pooled |a| |w_out| / ||x||": self.pooled(
                {i: np.square(p.a[i] * self.w_out[i] / p.resid[i][:, None]).mean(axis=0) for i in layers},
                beta,
            ),
            "pooled by sensitivity": self.pooled({i: g[i] * self.weight[i] for i in layers}, beta),
            "pooled by its root": self.pooled({i: g[i] * np.sqrt(self.weight[i]) for i in layers}, beta),
            "first layer whole": self.dense_ends(g, beta, 1, 0),
            "first two layers whole": self.dense_ends(g, beta, 2, 0),
            "last two layers whole": self.dense_ends(g, beta, 0, 2),
            "two at both ends whole": self.dense_ends(g, beta, 2, 2),
            "first two whole, prompt + other texts": self.dense_ends(both, beta, 2, 0),
        }

    def compensated(self, core: mc.CoreSet, mean: Array) -> Backend:
        """Return the restricted model, in which each dropped neuron has its mean activation."""
        blocks = [dict(block) for block in self.model.restrict(core).blocks]
        for i, ids in core.neurons.items():
            dropped = np.setdiff1d(np.arange(self.n), ids)
            bias = mean[i][dropped] @ self.model.blocks[i]["mlp.w_out"][dropped]
            blocks[i]["mlp.b_out"] = bias.astype(np.float32)
        return NumpyBackend(dataclasses.replace(self.model, blocks=blocks), ops=self.backend.ops)

    def measure(self, reading: Reading, beta: float) -> dict[str, dict[str, float]]:
        """Return what each way costs on a passage."""
        p = Prompt(self.model, reading.passage.ids[: reading.conditions.prompt_tokens])
        sets = self.sets(p, beta)
        rows = {name: reading.score(self.backend.restrict(core)) for name, core in sets.items()}
        both = (p.mean + self.mean) / 2
        rows["griffin, dropped ones at their mean"] = reading.score(self.compensated(sets["griffin"], p.mean))
        name = "prompt + other texts"
        rows[f"{name}, dropped ones at their mean"] = reading.score(self.compensated(sets[name], both))
        for name, hook in self.tokens(p, beta).items():
            rows[name] = reading.score(self.backend, hook)
        return rows

    def tokens(self, p: Prompt, beta: float) -> dict[str, Callable[[str, Array], None]]:
        """Return hooks that let each token choose its own neurons, the same number for all tokens."""
        k, inf = math.floor(beta * self.n), np.float32(np.inf)
        wide = uniform(p.griffin, [(1 + beta) / 2] * self.n_layers)
        half = uniform(p.griffin, [beta / 2] * self.n_layers)

        def keep_best(score: Callable[[int, Array, Array], Array]) -> Callable[[str, Array], None]:
            gate = np.empty(0)

            def keep(name: str, a: Array) -> None:
                nonlocal gate
                if name.endswith("mlp.hook_gate"):
                    gate = np.abs(a)
                elif name.endswith("mlp.hook_post"):
                    s = score(int(name.split(".")[1]), gate, a)
                    np.put_along_axis(a, np.argpartition(-s, k, axis=1)[:, k:], 0, axis=1)

            return keep

        def raised(s: Array, ids: Array, to: np.float32) -> Array:  # (n, n_neurons) -> the same
            s = s.copy()
            s[:, ids] = to
            return s

        def outside(i: int) -> Array:
            return np.setdiff1d(np.arange(self.n), wide[i])

        up = [u.astype(np.float32) for u in p.up]
        return {
            "each token by |gate|": keep_best(lambda i, gate, a: gate),
            "each token by |gate| rms(up)": keep_best(lambda i, gate, a: gate * up[i]),
            "the same inside a larger griffin set": keep_best(
                lambda i, gate, a: raised(gate * up[i], outside(i), -inf)
            ),
            "half griffin, half the same": keep_best(lambda i, gate, a: raised(gate * up[i], half[i], inf)),
            "each token by |a|": keep_best(lambda i, gate, a: np.abs(a)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="a plain text file")
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--passages", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, help="file for one line per passage and beta")
    args = parser.parse_args()
    if args.passages < 1:
        parser.error(f"passages is {args.passages}, expected 1 or more")
    model = mc.load(args.model)
    backend = make_backend(model)
    conditions = Conditions.of(model)
    measured, others = passages(
        model, [args.text], conditions.n_tokens, args.passages, conditions.fit_passages
    )
    done = [json.loads(line) for line in args.output.open()] if args.output and args.output.exists() else []
    trials = None
    for passage in measured:
        for beta in (0.4, 0.8):
            if any((row["passage"], row["beta"]) == (passage.name, beta) for row in done):
                continue
            if trials is None:
                two = [Reading(backend, other, conditions, []) for other in others[:2]]
                trials = Trials(backend, [other.ids for other in others], conditions, two)
            rows = trials.measure(Reading(backend, passage, conditions, []), beta)
            done.append({"passage": passage.name, "beta": beta, "rows": rows})
            print(f"{passage.name}, beta {beta}", file=sys.stderr)
            if args.output:
                with atomic_write(args.output) as part:
                    part.write_text("".join(json.dumps(row) + "\n" for row in done))
    for beta in (0.4, 0.8):
        of = [row["rows"] for row in done if row["beta"] == beta]
        print(f"\n{beta} kept, {len(of)} passages: ratio to dense perplexity; KL, and KL / griffin's [95%]")
        for name in of[0]:
            kl = np.array([[rows[name]["kl"], rows["griffin"]["kl"]] for rows in of])
            nats = np.mean([rows[name]["nll"] - rows[name]["dense_nll"] for rows in of])
            relative = bootstrap(kl, lambda x: x[..., 0].mean(axis=-1) / x[..., 1].mean(axis=-1))
            row = [f"{np.exp(nats):7.3f}", f"{kl[:, 0].mean():7.3f}"]
            print(f"{name:42}", *row, " {:.2f} [{:.2f}, {:.2f}]".format(*relative))


if __name__ == "__main__":
    main()
