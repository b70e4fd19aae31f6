"""Plain torch filtering and drawing of tokens, in the order and ties of the official VAR code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def filter_top_k_top_p_(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Put -inf, IN PLACE, on the logits (..., V) that top-k and then nucleus sampling drop.

    top_k 0 and top_p 0 switch a filter off. Entries equal to the k-th largest are all kept; the
    nucleus drops the smallest entries whose summed probability stays within 1 - top_p.
    """
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1, sorted=False).values
        logits.masked_fill_(logits < kth.amin(dim=-1, keepdim=True), -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum_(dim=-1) <= 1 - top_p
        drop[..., -1:] = False
        logits.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def draw_tokens(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Logits (B, l, V) -> one token per position, (B, l) int64."""
    flat = logits.softmax(dim=-1).flatten(0, 1)
    index = torch.multinomial(flat, num_samples=1, replacement=True, generator=generator)
    return index.view(logits.shape[:2])


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Logits (..., V) -> soft one-hot weights (..., V) of a Gumbel-perturbed softmax."""
    if generator is None:
        return F.gumbel_softmax(logits, tau=temperature, dim=-1)
    noise = torch.empty_like(logits).exponential_(generator=generator).log()
    return ((logits - noise) / temperature).softmax(dim=-1)
