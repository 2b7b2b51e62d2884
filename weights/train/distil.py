"""KL(teacher || student) over the whole vocabulary, computed in pieces of tokens to bound memory.

The embedding is frozen. So the gradient for the student's last hidden state, softmax(student) -
softmax(teacher) times the embedding, is computed together with the loss, and no logits are kept.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 8192  # tokens


def _piece(hidden: Tensor, taught: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
    # (n, d_model) twice, (n_vocab, d_model) -> (n,) nats, (n, d_model) gradient of each token's nats
    student, teacher = F.linear(hidden, embed).float(), F.linear(taught, embed).float()
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    soft = teacher.exp()
    return (soft * (teacher - student)).sum(-1), (student.exp() - soft).to(hidden.dtype) @ embed


@functools.cache
def _function(compiled: bool):
    return torch.compile(_piece, dynamic=False, fullgraph=True) if compiled else _piece


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, taught: Tensor, embed: Tensor) -> Tensor:
        piece = _function(hidden.is_cuda)
        nats, gradient = [], []
        for one, other in zip(hidden.split(PIECE), taught.split(PIECE), strict=True):
            a, b = piece(one, other, embed)
            nats.append(a)
            gradient.append(b)
        ctx.save_for_backward(torch.cat(gradient))
        return torch.cat(nats)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


def divergence(hidden: Tensor, taught: Tensor, embed: Tensor) -> Tensor:  # (..., d_model) twice -> (...) nats
    """Return each token's divergence.

    embed (n_vocab, d_model) has the dtype of the hidden states and gets no gradient.
    """
    flat = _Divergence.apply(hidden.flatten(0, -2), taught.flatten(0, -2), embed)
    return flat.view(hidden.shape[:-1])
