"""How a trainee's backbone runs a batch of rows: packed where it can be, else padded, an encoder-decoder its own way.

Shape letters: T tokens of all rows, B rows, L longest row of a padded batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.gradient_kernels import GradientKernels
from adapters.runtime.pack import pack_rows
from adapters.runtime.padded import pad
from adapters.runtime.spans import alike
from adapters.tasks.base import Labelled
from training.attention import KernelAttention

_Hidden = tuple[Tensor, Tensor]


def run_packed(
    backbone: Backbone,
    rows: Sequence[Labelled],
    kernels: GradientKernels | None,
    *,
    fills: bool = False,
) -> _Hidden:
    """Return hidden states ``[T, D]`` and the rows' B + 1 token borders; rows shortest first.

    Args:
        kernels: compute attention; None leaves it to torch.
        fills: let a row that nobody reads bring the tokens to a round number, for products whose sizes were met
            before are not compiled again.
    """
    device = backbone.device
    lengths = [len(row.token_ids) for row in rows]
    token_ids = [t for row in rows for t in row.token_ids]
    num_tokens = len(token_ids)
    pack = pack_rows(lengths, device=device)
    if kernels is not None:
        filling = _filling(num_tokens) if fills else 0
        bounds = pack.bounds
        if filling:
            token_ids += token_ids[:1] * filling
            bounds = torch.cat([bounds, bounds[-1:] + filling])
            # All the first: a backbone may have fewer positions than there is to fill.
            positions_T = torch.cat([pack.positions_T, pack.positions_T.new_zeros(filling)])
            pack = replace(pack, positions_T=positions_T)
        longest = max(lengths[-1], filling)
        pack = replace(pack, attend=KernelAttention(kernels, bounds, longest))
    hidden_TD = backbone.hidden_states(torch.tensor(token_ids, device=device), pack)
    return hidden_TD[:num_tokens], pack.bounds


def _filling(num_tokens: int) -> int:
    """Return how many tokens bring a number up to the next of 16 steps between two powers of two."""
    step = max(16, 2 ** (num_tokens.bit_length() - 5))
    return -num_tokens % step


def run_padded(backbone: Backbone, rows: Sequence[Labelled]) -> _Hidden:
    """Return what `run_packed` does, of a backbone whose rows can't be laid end to end."""
    hidden: list[Tensor] = []
    extra = {"use_cache": False} if backbone.spec.family == "decoder" else {}
    for batch in _alike(rows):
        ids_BL, mask_BL = pad([row.token_ids for row in batch], backbone.device)
        places_L = torch.arange(ids_BL.shape[1], device=backbone.device)
        out = backbone.base(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            position_ids=(backbone.first_position + places_L).expand_as(ids_BL),
            **extra,
        )
        hidden += _real(out.last_hidden_state, [len(row.token_ids) for row in batch])
    return _end_to_end(hidden)


def run_encoder(backbone: Backbone, rows: Sequence[Labelled]) -> _Hidden:
    """Return what `run_packed` does, of the encoder of an encoder-decoder: what heads read."""
    hidden: list[Tensor] = []
    for batch in _alike(rows):
        source_BLD, _ = _encode(backbone, [row.token_ids for row in batch])
        hidden += _real(source_BLD, [len(row.token_ids) for row in batch])
    return _end_to_end(hidden)


def run_sequences(backbone: Backbone, rows: Sequence[Labelled]) -> _Hidden:
    """Return the decoder's hidden states of an encoder-decoder, over its start tokens and a row's labels.

    The encoder reads a row's tokens before its labels. The state before each label predicts it, as in a decoder.
    """
    hidden: list[Tensor] = []
    decoder: Any = backbone.model.get_decoder()  # type: ignore[operator]
    for batch in _alike(rows):
        sources = [row.token_ids[: len(row.token_ids) - len(row.labels)] for row in batch]
        written = [[*backbone.start_ids, *map(int, row.labels)] for row in batch]
        source_BLD, source_mask_BL = _encode(backbone, sources)
        ids_BL, mask_BL = pad(written, backbone.device)
        out = decoder(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            encoder_hidden_states=source_BLD,
            encoder_attention_mask=source_mask_BL.long(),
            use_cache=False,
        )
        hidden += _real(out.last_hidden_state, [len(ids) for ids in written])
    return _end_to_end(hidden)


def _encode(backbone: Backbone, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    encoder: Any = backbone.model.get_encoder()  # type: ignore[operator]
    ids_BL, mask_BL = pad(rows, backbone.device)
    hidden: Tensor = encoder(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    return hidden, mask_BL


def _alike(rows: Sequence[Labelled]) -> Iterator[Sequence[Labelled]]:
    """Yield neighbouring rows of similar length, which share a padded batch."""
    for first, stop in alike([len(row.token_ids) for row in rows]):
        yield rows[first:stop]


def _real(hidden_BLD: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [row[:length] for row, length in zip(hidden_BLD, lengths, strict=True)]


def _end_to_end(hidden: Sequence[Tensor]) -> _Hidden:
    lengths = torch.tensor([0, *(len(row) for row in hidden)], device=hidden[0].device)
    return torch.cat(list(hidden)), lengths.cumsum(0)
