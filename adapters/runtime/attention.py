"""Attention over a pack, as a function that transformers calls in place of its own.

transformers hands a registered attention function whatever extra keyword arguments the model was called
with, so `Pack` arrives here untouched. It builds no mask for an implementation it does not know
(`masking_utils._preprocess_mask_arguments`), which is what packing needs.

Shape letters: T tokens of the pack, H query heads, K key-value heads, D head size, B rows, L longest row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from adapters.runtime.cache import CacheView
from adapters.runtime.kernels import Kernels
from adapters.runtime.pack import Group, Pack
from adapters.runtime.spans import Reads

PACKED = "headstock_packed"
# Beyond it torch's fused attention is faster in training, too, and weights of all pairs take much memory.
_LONGEST_BY_PRODUCTS = 384


def packed_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    *,
    pack: Pack,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return ``[1, T, H, D]``: each token attends to its own row only, and to that row's past in the cache.

    ``sliding_window``: a token attends to those less than so many tokens away; for rows without a past only.
    """
    # Not [0], whose gradient is a copy into zeros.
    query, key, value = (x.squeeze(0) for x in (query_1HTD, key_1KTD, value_1KTD))
    causal = bool(getattr(module, "is_causal", True))
    if pack.attend is not None:
        scale = query.shape[2] ** -0.5 if scaling is None else scaling
        out_THD = pack.attend(
            query,
            key,
            value,
            is_causal=causal,
            scale=scale,
            window=sliding_window,
            dropout=dropout,
        )
        return out_THD[None], None
    layer = int(module.layer_idx) if pack.cache else -1  # type: ignore[arg-type]
    if pack.cache is not None:
        pack.cache.write(layer, key, value)
    if pack.kernels is not None:
        scale = query.shape[2] ** -0.5 if scaling is None else scaling
        out_THD = _attend(
            query, key, value, pack, pack.kernels, layer, scale, causal, sliding_window
        )
        return out_THD[None], None
    parts: list[Tensor] = []
    if pack.cache is not None:
        parts += _attend_to_past(query, pack.cache, layer, scaling)
        for (start, stop), cells in zip(pack.continued, pack.cache.continued, strict=True):
            parts.append(_attend_continued(query[:, start:stop], pack.cache, cells, layer, scaling))
    for group in pack.groups:
        parts.append(
            _attend_group(query, key, value, group, causal, scaling, dropout, sliding_window)
        )
    out_THD = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out_THD[None], None


def _attend(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    pack: Pack,
    kernels: Kernels,
    layer: int,
    scale: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Return ``[T, H, D]`` by kernel: decoding rows, rows that go on with several tokens, rows that start here."""
    heads, num_tokens, size = query_HTD.shape
    out_THD = query_HTD.new_empty((num_tokens, heads, size))
    if pack.cache is not None:
        keys_CKD, values_CKD = pack.cache.cache.keys[layer], pack.cache.cache.values[layer]
        if pack.num_decoding:
            query_BHD = query_HTD[:, : pack.num_decoding].transpose(0, 1)
            (reads,) = pack.cache.reads
            kernels.attend(query_BHD, keys_CKD, values_CKD, reads, scale, out_THD)
        if pack.cache.spans is not None:
            keys, values = keys_CKD.transpose(0, 1), values_CKD.transpose(0, 1)
            kernels.attend_rows(query_HTD, keys, values, pack.cache.spans, scale, out_THD)
    if pack.fresh is not None:
        kernels.attend_rows(
            query_HTD,
            key_KTD,
            value_KTD,
            pack.fresh,
            scale,
            out_THD,
            is_causal=causal,
            window=window,
        )
    return out_THD


def _attend_to_past(
    query_HTD: Tensor, view: CacheView, layer: int, scaling: float | None
) -> Iterator[Tensor]:
    first = 0
    for reads in view.reads:
        stop = first + reads.num_rows
        yield _attend_alike(query_HTD[:, first:stop], view, reads, layer, scaling)
        first = stop


def _attend_alike(
    query_HBD: Tensor, view: CacheView, reads: Reads, layer: int, scaling: float | None
) -> Tensor:
    query_BHD = query_HBD.transpose(0, 1)
    num_rows, num_heads, size = query_BHD.shape
    assert reads.cells_BL is not None
    key_BKLD, value_BKLD = (x.transpose(1, 2) for x in view.read(layer, reads.cells_BL))
    # One query a row: the heads that share a key-value head become its queries, and nothing is repeated.
    grouped = query_BHD.reshape(num_rows, key_BKLD.shape[1], -1, size)
    out = scaled_dot_product_attention(
        grouped, key_BKLD, value_BKLD, attn_mask=reads.mask_B11L, scale=scaling
    )
    return out.reshape(num_rows, num_heads, size)


def _attend_continued(
    query_HND: Tensor, view: CacheView, cells_L: Tensor, layer: int, scaling: float | None
) -> Tensor:
    """Attend one row's N new tokens to all L of its tokens up to themselves."""
    key_KLD, value_KLD = (x.transpose(0, 1) for x in view.read(layer, cells_L))
    num_new, length = query_HND.shape[1], len(cells_L)
    position_N1 = torch.arange(length - num_new, length, device=cells_L.device)[:, None]
    mask_NL = torch.arange(length, device=cells_L.device) <= position_N1
    out_HND = scaled_dot_product_attention(
        query_HND[None], key_KLD[None], value_KLD[None],
        attn_mask=mask_NL, scale=scaling, enable_gqa=query_HND.shape[0] != key_KLD.shape[0],
    )[0]  # fmt: skip
    return out_HND.transpose(0, 1)


def _attend_group(
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    group: Group,
    causal: bool,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    query, key, value = (
        _pad(x[:, group.start : group.stop], group) for x in (query_HTD, key_KTD, value_KTD)
    )
    mask = group.mask_B11L
    if window is not None and query.shape[2] > window:
        assert not causal, "rows of a windowed decoder have a past, which no window bounds here"
        near_LL = _near(query.shape[2], window, query.device)
        mask = near_LL if mask is None else mask & near_LL
    if query.requires_grad and query.shape[2] <= _LONGEST_BY_PRODUCTS:
        out_BHLD = _attend_by_products(query, key, value, mask, causal, scaling, dropout)
        out_NHD = out_BHLD.transpose(1, 2).flatten(0, 1)
        return out_NHD if group.keep_N is None else out_NHD.index_select(0, group.keep_N)
    # Padding stands at a row's end, so under a causal mask no real token can see it.
    out_BHLD = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if causal else mask,
        is_causal=causal,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    out_NHD = out_BHLD.transpose(1, 2).flatten(0, 1)
    return out_NHD if group.keep_N is None else out_NHD.index_select(0, group.keep_N)


def _attend_by_products(
    query_BHLD: Tensor,
    key_BKLD: Tensor,
    value_BKLD: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Return ``[B, H, L, D]`` by plain products, whose gradient is several times faster on a CPU for short rows."""
    rows, heads, length, size = query_BHLD.shape
    num_kv = key_BKLD.shape[1]
    # The heads that share a key-value head become its queries, and nothing is repeated.
    query = query_BHLD.reshape(rows, num_kv, -1, size) * (
        size**-0.5 if scaling is None else scaling
    )
    scores = (query @ key_BKLD.transpose(2, 3)).float().view(rows, heads, length, length)
    if causal:
        mask = query.new_ones((length, length), dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).to(query.dtype).view(rows, num_kv, -1, length)
    weights = nn.functional.dropout(weights, dropout)
    return (weights @ value_BKLD).view(rows, heads, length, size)


def _near(length: int, window: int, device: torch.device) -> Tensor:
    """Return ``[L, L]``, true where two tokens are less than a window apart."""
    position_L = torch.arange(length, device=device)
    return (position_L[:, None] - position_L).abs() < window


def _pad(x_HND: Tensor, group: Group) -> Tensor:
    """Return ``[B, H, L, D]``, the group's rows side by side."""
    if group.gather_BL is not None:
        x_HND = x_HND.index_select(1, group.gather_BL.flatten())
    return x_HND.unflatten(1, (group.num_rows, -1)).transpose(0, 1)


AttentionInterface.register(PACKED, packed_attention)
