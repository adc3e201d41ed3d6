"""Attention with feedback: the projections into and out of it hand errors down through B; attention itself is exact.

``nn.MultiheadAttention`` keeps the weights of query, key and value in one parameter and computes everything in one
function, past its own ``out_proj``. Here both projections run as layers (Vaswani et al. 2017 for the formula), in the
layout in which the inputs come, so that what a layer sees as samples are the user's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from alignlab.rules.hosts import FeedbackHost
from alignlab.rules.linear import FeedbackLinear


class FeedbackOutProjection(FeedbackLinear, NonDynamicallyQuantizableLinear):
    """The class that ``nn.MultiheadAttention`` has for its ``out_proj``, with feedback."""


class FeedbackMultiheadAttention(FeedbackHost, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` (keys and values as wide as queries) whose backward pass uses feedback weights."""

    maps = {"in_proj": ("in_proj_weight", "in_proj_bias")}  # noqa: RUF012

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
        """As the plain module's: the output, and the weights (averaged over heads) if they are asked for."""
        if query.is_nested:  # its inference path alone takes them
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask)
        self._check(query, key, value, key_padding_mask, attn_mask, is_causal)
        q, k, v = (self._heads(x) for x in self._project(query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _added(attn_mask, key_padding_mask, q)
        k, v, mask = self._extended(k, v, mask)
        if need_weights:
            mixed, weights = self._attend(q, k, v, mask)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal), None
        output = self.out_proj(self._merged(mixed, query.dim()))
        if (
            self.batch_first and query.dim() == 3
        ):  # laid out as the plain module's: a dropout that follows draws in that order
            output = output.transpose(0, 1).contiguous().transpose(0, 1)
        if weights is None:
            return output, None
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights.squeeze(0) if query.dim() == 2 else weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value by their own rows of the one weight, as few products as the inputs allow."""
        E, project = self.embed_dim, self.hosted("in_proj")
        if query is key and key is value:
            return project(query).chunk(3, -1)  # type: ignore[no-any-return]
        rows = slice(0, E), slice(E, 2 * E), slice(2 * E, 3 * E)
        q = project(query, rows[0])[..., rows[0]]
        if key is value:
            both = project(key, slice(E, 3 * E))
            return q, both[..., rows[1]], both[..., rows[2]]
        return q, project(key, rows[1])[..., rows[1]], project(value, rows[2])[..., rows[2]]

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E), (L, N, E) or (L, E) as (N, heads, L, head_dim)."""
        split = x.unflatten(-1, (self.num_heads, self.head_dim))  # type: ignore[no-untyped-call]
        if x.dim() == 2:
            split = split.unsqueeze(0)
        elif not self.batch_first:
            split = split.transpose(0, 1)
        return split.transpose(1, 2).contiguous()  # type: ignore[no-any-return]

    def _merged(self, x: Tensor, dims: int) -> Tensor:
        """(N, heads, L, head_dim) in the inputs' layout."""
        joined = x.transpose(1, 2).flatten(2)
        if dims == 2:
            return joined.squeeze(0)
        return joined if self.batch_first else joined.transpose(0, 1)

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values with the learnt pair (``add_bias_kv``) and the zero pair (``add_zero_attn``) behind them."""
        length, n = k.shape[2], len(k)
        if self.bias_k is not None and self.bias_v is not None:
            pair = (b.to(k.dtype).view(1, self.num_heads, 1, -1) for b in (self.bias_k, self.bias_v))
            k, v = (torch.cat([x, b.expand(n, -1, -1, -1)], 2) for x, b in zip((k, v), pair, strict=True))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return k, v, None if mask is None else F.pad(mask, (0, k.shape[2] - length))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """softmax(q kᵀ / √head_dim + mask) v, and the weights (N, heads, L, S) after dropout."""
        scaled, k, v = (q * math.sqrt(1.0 / self.head_dim)).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        if mask is None:
            scores = torch.bmm(scaled, k.mT)
        else:
            scores = torch.baddbmm(mask.expand(*q.shape[:3], -1).flatten(0, 1), scaled, k.mT)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        heads = len(q), self.num_heads
        return torch.bmm(weights, v).unflatten(0, heads), weights.unflatten(0, heads)  # type: ignore[no-untyped-call]

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        """``ValueError`` for shapes that broadcasting would let pass."""
        if is_causal and mask is None:
            raise ValueError("attention: is_causal says what attn_mask is, so give the mask as well")
        sizes = {
            "query": query.dim() in (2, 3),
            "key": key.dim() == query.dim(),
            "value": value.shape == key.shape,
        }
        first = 0 if self.batch_first else 1
        length = 0 if query.dim() == 2 else 1 - first
        batch = () if query.dim() == 2 else (query.shape[first],)
        L, S = (query.shape[length], key.shape[length]) if all(sizes.values()) else (0, 0)
        sizes["key"] &= query.dim() == 2 or key.shape[first : first + 1] == batch
        sizes["key_padding_mask"] = padding is None or tuple(padding.shape) == (*batch, S)
        every = math.prod(batch) * self.num_heads
        sizes["attn_mask"] = mask is None or tuple(mask.shape) in ((L, S), (every, L, S))
        given = {"query": query, "key": key, "value": value, "key_padding_mask": padding, "attn_mask": mask}
        if wrong := next((name for name, fits in sizes.items() if not fits), None):
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in given.items() if x is not None)
            raise ValueError(f"attention: {wrong} does not fit to the others: {shapes}")


def _added(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores (N, heads, L, S); −∞ where a Boolean one says so."""
    found = []
    if attn_mask is not None:
        added = _additive(attn_mask, q.dtype)
        found.append(added if added.dim() == 2 else added.unflatten(0, tuple(q.shape[:2])))  # type: ignore[no-untyped-call]
    if padding is not None:
        added = _additive(padding, q.dtype)
        found.append(added.reshape(len(q), 1, 1, -1))
    return None if not found else found[0] if len(found) == 1 else found[0] + found[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
