"""SmolLM2-135M-Instruct in plain PyTorch, for sampling in large batches from its GGUF weights.

There is no prefill: all rows start at position 0 and a row's prompt tokens are forced, so one step function
serves prompt and continuation, and every row of the batch is at the same position.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 2  # <|im_end|>


def load_gguf_fields(path: Path, reader=None) -> dict:
    from gguf import GGUFReader

    reader = reader or GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def load_gguf(path: Path):  # -> (fields: dict, tensors: dict of float32 arrays)
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    fields = load_gguf_fields(path, reader)
    tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors


def load_tokenizer(fields: dict) -> Tokenizer:
    """Byte-level BPE that splits digits one by one, as SmolLM2's tokenizer.json does."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


class SmolLM2:
    def __init__(self, fields: dict, tensors: dict, device: str, dtype: torch.dtype):
        self.n_layers = fields["llama.block_count"]
        self.n_heads = fields["llama.attention.head_count"]
        self.n_kv_heads = fields["llama.attention.head_count_kv"]
        self.d_head = fields["llama.rope.dimension_count"]
        self.eps = fields["llama.attention.layer_norm_rms_epsilon"]
        self.theta = fields["llama.rope.freq_base"]
        self.device, self.dtype = device, dtype
        self.cos, self.sin = self.rope(2048)

        def tensor(array):
            return torch.tensor(array).to(device, dtype)

        def unpermute(array, n_heads):  # llama.cpp interleaves the two rope halves of every head's rows
            return array.reshape(n_heads, self.d_head // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)

        self.embed = tensor(tensors["token_embd.weight"])
        self.norm = tensor(tensors["output_norm.weight"])
        self.layers = []
        for i in range(self.n_layers):
            t = {
                name.split(".", 2)[2].removesuffix(".weight"): a
                for name, a in tensors.items()
                if name.startswith(f"blk.{i}.")
            }
            q, k = unpermute(t["attn_q"], self.n_heads), unpermute(t["attn_k"], self.n_kv_heads)
            self.layers.append(
                {
                    "norm1": tensor(t["attn_norm"]),
                    "qkv": tensor(np.concatenate([q, k, t["attn_v"]])),
                    "o": tensor(t["attn_output"]),
                    "norm2": tensor(t["ffn_norm"]),
                    "gate_up": tensor(np.concatenate([t["ffn_gate"], t["ffn_up"]])),
                    "down": tensor(t["ffn_down"]),
                }
            )

    def cache(self, n_rows: int, n_ctx: int):
        """Keys and values: a list over layers of (2, n_rows, n_kv_heads, n_ctx, d_head)."""
        shape = (2, n_rows, self.n_kv_heads, n_ctx, self.d_head)
        return [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(self.n_layers)]

    def rope(self, n_ctx: int):  # -> cos, sin (n_ctx, d_head)
        frequency = self.theta ** (-torch.arange(self.d_head // 2, dtype=torch.float64) * 2 / self.d_head)
        angle = torch.outer(torch.arange(n_ctx, dtype=torch.float64), frequency).repeat(1, 2)
        return angle.cos().to(self.device, self.dtype), angle.sin().to(self.device, self.dtype)

    @torch.no_grad()
    def step(self, ids, position: int, cache):  # (n_rows,) -> logits (n_rows, n_vocab)
        cos, sin = self.cos[position], self.sin[position]
        n_rows, n_kv, group = len(ids), self.n_kv_heads, self.n_heads // self.n_kv_heads

        def rotate(x):  # (n_rows, heads, d_head)
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        x = self.embed[ids]  # (n_rows, d_model)
        for layer, kv in zip(self.layers, cache, strict=True):
            h = F.rms_norm(x, x.shape[-1:], layer["norm1"], self.eps) @ layer["qkv"].T
            q, k, v = h.view(n_rows, -1, self.d_head).split([self.n_heads, n_kv, n_kv], 1)
            kv[0, :, :, position] = rotate(k)
            kv[1, :, :, position] = v
            # The queries that share a key-value head stand as its query positions: no mask, no repeated keys.
            q = rotate(q).view(n_rows, n_kv, group, self.d_head)
            a = F.scaled_dot_product_attention(q, kv[0, :, :, : position + 1], kv[1, :, :, : position + 1])
            x = x + a.reshape(n_rows, -1) @ layer["o"].T
            gate, up = (F.rms_norm(x, x.shape[-1:], layer["norm2"], self.eps) @ layer["gate_up"].T).chunk(
                2, -1
            )
            x = x + (F.silu(gate) * up) @ layer["down"].T
        return F.rms_norm(x, x.shape[-1:], self.norm, self.eps) @ self.embed.T

    @torch.no_grad()
    def generator(self, n_rows: int, max_prompt: int, max_new: int, **sampling):
        """A function from at most n_rows prompts to their replies: one cache, a CUDA graph a position.

        Launching a step's 700 small kernels takes longer than running them; the first batch records them,
        and all later ones are spared the launches.
        """
        n_ctx = max_prompt + max_new
        cache = self.cache(n_rows, n_ctx)
        out = torch.zeros(
            (n_rows, n_ctx), dtype=torch.long, device=self.device
        )  # tokens so far; ahead of them the forced ones or -1
        graphs: list = []
        on_gpu = self.device.startswith("cuda")
        pool, side = (torch.cuda.graph_pool_handle(), torch.cuda.Stream()) if on_gpu else (None, None)

        def advance(position: int) -> None:
            ids = choose(self.step(out[:, position], position, cache), out[:, : position + 1], **sampling)
            given = out[:, position + 1]
            out[:, position + 1] = torch.where(given >= 0, given, ids)

        def replay(position: int) -> None:
            if pool is None or position < 2:
                return advance(position)
            if position - 2 == len(graphs):
                graphs.append(torch.cuda.CUDAGraph())
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(
                    side
                ):  # the context manager torch.cuda.graph would collect garbage every time
                    graphs[-1].capture_begin(pool=pool)
                    advance(position)
                    graphs[-1].capture_end()
                torch.cuda.current_stream().wait_stream(side)
            graphs[position - 2].replay()

        def generate(prompts: list[list[int]], seed: int, deadline=lambda: False) -> list[list[int]]:
            torch.manual_seed(seed)
            forced = np.full((n_rows, n_ctx), -1)
            for row, prompt in enumerate(prompts):
                forced[row, : len(prompt)] = prompt
            forced[len(prompts) :, 0] = EOS
            out.copy_(torch.from_numpy(forced))
            for position in range(n_ctx - 1):
                replay(position)
                if position % 32 == 31 and (
                    deadline() or bool((out[:, max_prompt : position + 2] == EOS).any(-1).all())
                ):
                    break
            tails = []
            for row, prompt in zip(out.cpu().numpy(), prompts, strict=False):
                tail = row[len(prompt) : len(prompt) + max_new]
                ends = np.flatnonzero((tail == EOS) | (tail < 0))
                tails.append(
                    tail[: ends[0] + (tail[ends[0]] == EOS)].tolist() if len(ends) else tail.tolist()
                )
            return tails

        return generate


def choose(
    logits, past, temperature: float, min_p: float, penalty: float
):  # (n_rows, n_vocab), (n_rows, t) -> ids (n_rows,)
    """Sample among the tokens at least min_p times as likely as the likeliest; temperature 0: the likeliest.

    A token that would end a run of four seen before loses `penalty` from its logit: small models repeat.
    """
    logits = logits.float()
    if penalty and past.shape[1] > 4:
        same = (
            (past[:, :-3] == past[:, -3:-2])
            & (past[:, 1:-2] == past[:, -2:-1])
            & (past[:, 2:-1] == past[:, -1:])
        )
        logits.scatter_add_(1, past[:, 3:].clamp(min=0), -penalty * same)
    if temperature == 0:
        return logits.argmax(-1)
    kept = (
        logits.masked_fill(logits < logits.amax(-1, keepdim=True) + np.log(min_p), -torch.inf)
        if min_p > 0
        else logits
    )
    return (kept / temperature - torch.empty_like(logits).exponential_().log_()).argmax(
        -1
    )  # the Gumbel trick
