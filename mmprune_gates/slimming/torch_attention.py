"""``nn.MultiheadAttention`` with fewer heads than its embedding has room for, which torch's own forward refuses."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` that takes its widths from its parameters and its number of heads.

    :func:`allow_any_width` turns a module into one; parameters, keys and calls are those of the base class.

    Attributes:
        whole_head: Channels of a head before any went: the scale of the scores depends on it.
    """

    whole_head: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in the base class: (N, L, E) tensors with ``batch_first``, otherwise (L, N, E).

        Raises:
            ValueError: Tensors without a batch, or a hint that the mask is causal without the mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError(f'{type(self).__name__}: is_causal=True says what attn_mask is, so give it as well')
        if query.dim() != 3:
            raise ValueError(f'{type(self).__name__} takes tensors of three dimensions, got {query.dim()}')
        q, k, v = map(self.by_head, self.projected(query, key, value))
        mask = self.mask(attn_mask, key_padding_mask, q)
        is_causal &= key_padding_mask is None and not need_weights
        if is_causal:
            mask = None  # torch does without it, too
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * sqrt(1.0 / self.whole_head) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            sums = weights @ v
        else:
            sums = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=1 / sqrt(self.whole_head))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        result = self.out_proj(sums.permute(order).flatten(2))
        return result, weights

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            together = F.linear(query, weight, bias)
            return together.unflatten(-1, (3, -1)).unbind(-2)  # not split: torch's own code has no pieces here
        weights: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if weight is not None:
            weights = weight.chunk(3)
        biases: Any = (None, None, None)
        if bias is not None:
            biases = bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def by_head(self, x: Tensor) -> Tensor:
        """(N, L, h d) or (L, N, h d) -> (N, h, L, d)."""
        order = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        return x.unflatten(-1, (self.num_heads, -1)).permute(order)

    def mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Mask to add to the scores (N, h, L, S), None without any; True in a given mask means not attended to."""
        parts = []
        if attn_mask is not None:
            is_per_head = attn_mask.dim() == 3
            parts.append(attn_mask.unflatten(0, q.shape[:2]) if is_per_head else attn_mask)
        if key_padding_mask is not None:
            parts.append(key_padding_mask[:, None, None])
        if not parts:
            return None
        first, *others = [_added(part, q.dtype) for part in parts]
        return sum(others, first)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add: -inf where a bool mask is True; any other mask unchanged."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def allow_any_width(module: nn.Module) -> None:
    """Let a module whose tensors have changed compute with their widths, if it is an attention of torch that can.

    One that adds keys and values of its own (``add_bias_kv``, ``add_zero_attn``) cannot, nor can a class derived from
    it, whose own code would be lost.
    """
    if type(module) is not nn.MultiheadAttention:
        return
    if module.bias_k is None and not module.add_zero_attn:
        module.__class__ = NarrowAttention
        module.whole_head = module.head_dim
        module.register_forward_pre_hook(_keep_off)


def avoid_nested_tensors(model: nn.Module) -> None:
    """Keep torch's encoders from packing padded sequences into nested tensors, which neither gates nor slices take."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _keep_off(module: nn.Module, args: tuple) -> None:
    """Forward pre-hook that does nothing, but makes ``nn.TransformerEncoderLayer`` call the module, not a kernel."""
