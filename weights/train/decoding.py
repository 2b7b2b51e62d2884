"""Attention of one token over a kv cache and sampling of the next token, in plain PyTorch and in Triton.

The Triton kernels read the position from device memory, so one CUDA graph serves every position.
"""

from __future__ import annotations

import torch
from llama import rotate
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a machine without a GPU
    triton = None


def attend(qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, position: Tensor) -> Tensor:
    """Apply rope, append the token's key and value to the cache, and attend to all tokens so far.

    qkv (n_rows, (n_heads + 2 n_kv) * d_head); keys, values (n_rows, n_kv, n_ctx, d_head), updated in place;
    cos, sin (n_ctx, d_head) float32; position (1,) int32 -> (n_rows, n_heads * d_head)
    """
    if qkv.is_cuda:
        return kernel_attend(qkv, keys, values, cos, sin, position)
    n_rows, n_kv, _, d = keys.shape
    at, (cos, sin) = int(position), (x[int(position)][None] for x in (cos, sin))
    heads = qkv.view(n_rows, 1, -1, d)
    q, k, v = heads.split([heads.shape[2] - 2 * n_kv, n_kv, n_kv], 2)
    keys[:, :, at], values[:, :, at] = rotate(k, cos, sin)[:, 0], v[:, 0]
    q = rotate(q, cos, sin)[:, 0].view(n_rows, n_kv, -1, d)
    weights = (q @ keys[:, :, : at + 1].mT * d**-0.5).float().softmax(-1)
    return (weights.to(q.dtype) @ values[:, :, : at + 1]).reshape(n_rows, -1)


def sample(logits: Tensor, temperature: Tensor, floor: Tensor, seed: Tensor) -> Tensor:
    """Sample one token per row among those within `floor` nats of the most likely one (min-p).

    logits (n_rows, n_vocab); temperature, floor (n_rows,) float32; seed (1,) int32 -> (n_rows,) int32.
    Temperature 0 takes the most likely token.
    """
    if logits.is_cuda:
        return kernel_sample(logits, temperature, floor, seed)
    logits = logits.float()
    least = logits.amax(-1, keepdim=True) + floor[:, None]
    generator = torch.Generator().manual_seed(int(seed))
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()  # Gumbel-max sampling
    return logits.add(noise * temperature[:, None]).masked_fill(logits < least, -torch.inf).argmax(-1).int()


def kernel_attend(
    qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, position: Tensor
) -> Tensor:
    n_rows, n_kv, n_ctx, d = keys.shape
    n_heads = qkv.shape[1] // d - 2 * n_kv
    out = torch.empty(n_rows, n_heads * d, device=qkv.device, dtype=qkv.dtype)
    _attend_kernel[(n_rows, n_kv)](
        qkv, keys, values, out, cos, sin, position, n_ctx, d**-0.5,
        n_heads, n_kv, n_heads // n_kv, d // 2, 128, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def kernel_sample(logits: Tensor, temperature: Tensor, floor: Tensor, seed: Tensor) -> Tensor:
    n_rows, n_vocab = logits.shape
    out = torch.empty(n_rows, device=logits.device, dtype=torch.int32)
    _sample_kernel[(n_rows,)](logits, temperature, floor, seed, out, n_vocab, 4096, num_warps=8)
    return out


if triton:

    @triton.jit
    def _attend_kernel(
        qkv, keys, values, out, cos, sin, position, n_ctx, scale,
        N_HEADS: tl.constexpr, N_KV: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One program handles one row and one key-value head; its GROUP queries are padded to a tile of 16.

        The token's own key and value stay in registers: other threads of the program write them to the cache.
        """
        row, head = tl.program_id(0), tl.program_id(1)
        at = tl.load(position)
        half, whole, member = tl.arange(0, HALF), tl.arange(0, 2 * HALF), tl.arange(0, 16)
        c, s = tl.load(cos + at * HALF * 2 + half), tl.load(sin + at * HALF * 2 + half)
        here = qkv + row * (N_HEADS + 2 * N_KV) * 2 * HALF
        asked = (member < GROUP)[:, None]
        q_at = here + (head * GROUP + member)[:, None] * 2 * HALF + half[None]
        q_low = tl.load(q_at, mask=asked, other=0.0).to(tl.float32)
        q_high = tl.load(q_at + HALF, mask=asked, other=0.0).to(tl.float32)
        dtype = qkv.dtype.element_ty
        low = ((q_low * c - q_high * s) * scale).to(dtype)
        high = ((q_high * c + q_low * s) * scale).to(dtype)
        k_at = here + (N_HEADS + head) * 2 * HALF + half
        k_low, k_high = tl.load(k_at).to(tl.float32), tl.load(k_at + HALF).to(tl.float32)
        own_low, own_high = (k_low * c - k_high * s).to(dtype), (k_high * c + k_low * s).to(dtype)
        own_value = tl.load(here + (N_HEADS + N_KV + head) * 2 * HALF + whole)
        cache = (row * N_KV + head).to(tl.int64) * n_ctx * 2 * HALF
        tl.store(keys + cache + at * 2 * HALF + half, own_low)
        tl.store(keys + cache + at * 2 * HALF + HALF + half, own_high)
        tl.store(values + cache + at * 2 * HALF + whole, own_value)

        most = tl.sum(low.to(tl.float32) * own_low.to(tl.float32)[None], 1)
        most += tl.sum(high.to(tl.float32) * own_high.to(tl.float32)[None], 1)
        mass = tl.full((16,), 1.0, tl.float32)
        mixed = tl.zeros((16, 2 * HALF), tl.float32) + own_value.to(tl.float32)[None]
        for first in range(0, at, BLOCK):
            token = first + tl.arange(0, BLOCK)
            inside = (token < at)[:, None]
            k_from = keys + cache + token[:, None] * 2 * HALF + half[None]
            past_low, past_high = (
                tl.load(k_from, mask=inside, other=0.0),
                tl.load(k_from + HALF, mask=inside, other=0.0),
            )
            score = tl.dot(low, tl.trans(past_low)) + tl.dot(high, tl.trans(past_high))
            score = tl.where((token < at)[None], score, float("-inf"))
            more = tl.maximum(most, tl.max(score, 1))
            weight, shrink = tl.exp(score - more[:, None]), tl.exp(most - more)
            past = tl.load(values + cache + token[:, None] * 2 * HALF + whole[None], mask=inside, other=0.0)
            mixed = mixed * shrink[:, None] + tl.dot(weight.to(dtype), past)
            mass = mass * shrink + tl.sum(weight, 1)
            most = more
        to = out + row * N_HEADS * 2 * HALF + (head * GROUP + member)[:, None] * 2 * HALF + whole[None]
        tl.store(to, (mixed / mass[:, None]).to(dtype), mask=asked)

    @triton.jit
    def _sample_kernel(logits, temperature, floor, seed, out, n_vocab, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        here = logits + row.to(tl.int64) * n_vocab
        heat, start = tl.load(temperature + row), tl.load(seed)
        most = tl.full((BLOCK,), float("-inf"), tl.float32)
        for first in range(0, n_vocab, BLOCK):
            token = first + tl.arange(0, BLOCK)
            most = tl.maximum(
                most, tl.load(here + token, mask=token < n_vocab, other=float("-inf")).to(tl.float32)
            )
        least = tl.max(most) + tl.load(floor + row)
        best, chosen = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.int32)
        for first in range(0, n_vocab, BLOCK):
            token = first + tl.arange(0, BLOCK)
            logit = tl.load(here + token, mask=token < n_vocab, other=float("-inf")).to(tl.float32)
            uniform = tl.maximum(tl.rand(start, row * n_vocab + token), 1e-10)
            key = tl.where(logit >= least, logit - heat * tl.log(-tl.log(uniform)), float("-inf"))
            chosen = tl.where(key > best, token, chosen)
            best = tl.maximum(best, key)
        top = tl.max(best)
        tl.store(out + row, tl.min(tl.where(best == top, chosen, n_vocab)))
