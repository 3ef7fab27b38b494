"""How rows of different length share one pass: laid end to end, padded only inside attention.

Shape letters: T tokens of all rows in the pack, B rows, L longest row of a group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.runtime.cache import CacheView
from adapters.runtime.kernels import Kernels
from adapters.runtime.spans import BLOCK, Span, Spans, alike, join_spans


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring rows of similar length, which attention takes as one padded batch.

    ``gather_BL`` holds, for each cell of the padded batch, a token of the pack (padding repeats the
    row's first token); ``keep_N`` the flat cells that are real; ``mask_B11L`` which keys are real.
    All three are None when the rows have one length and nothing is padded.
    """

    start: int
    stop: int
    num_rows: int
    gather_BL: Tensor | None = None
    keep_N: Tensor | None = None
    mask_B11L: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Everything attention must know about the rows of one pass.

    Decoding rows come first, one token each; they read the past from ``cache``. Then rows that go on with several
    tokens (the next part of a long prompt, or a prompt whose beginning is in the cache), their token borders in
    ``continued``. Then the rows that start here, shortest first, in ``groups``. ``bounds`` are the borders of all.
    With ``kernels`` nothing is padded: the rows that start here are in ``fresh`` instead. ``attend`` is a function that
    attention is handed over to, for packs in which all rows start here (training has one, with a gradient).
    """

    bounds: Tensor
    positions_T: Tensor
    groups: tuple[Group, ...]
    num_decoding: int = 0
    cache: CacheView | None = field(default=None)
    continued: tuple[tuple[int, int], ...] = ()
    kernels: Kernels | None = None
    fresh: Spans | None = None
    attend: Callable[..., Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.positions_T.shape[0])


def pack_rows(
    lengths: Sequence[int],
    past: Sequence[int] = (),
    cache: CacheView | None = None,
    device: torch.device | str = "cpu",
    continuing: Sequence[tuple[int, int]] = (),
    kernels: Kernels | None = None,
) -> Pack:
    """Lay out one pass: a token for each of the ``past`` rows, ``continuing`` rows, then new rows.

    Args:
        lengths: tokens of each new row, in ascending order.
        past: tokens already in the cache, for each decoding row.
        continuing: tokens already in the cache and new tokens, for each row that goes on with several.
        kernels: compute attention; None leaves it to torch.
    """
    assert list(lengths) == sorted(lengths), "new rows go shortest first, so that groups are slices"
    sizes = [1] * len(past) + [new for _, new in continuing] + list(lengths)
    bounds = torch.zeros(len(sizes) + 1, dtype=torch.long)
    torch.cumsum(torch.tensor(sizes, dtype=torch.long), 0, out=bounds[1:])
    borders = bounds.tolist()
    positions = [torch.tensor(past, dtype=torch.long)] if past else []
    positions += [torch.arange(cached, cached + new) for cached, new in continuing]
    positions += [torch.arange(length) for length in lengths]
    first_fresh = len(past) + len(continuing)
    return Pack(
        bounds=bounds.to(device),
        positions_T=torch.cat(positions).to(device),
        groups=() if kernels else tuple(_groups(lengths, borders[first_fresh], device)),
        num_decoding=len(past),
        cache=cache,
        continued=tuple((borders[i], borders[i + 1]) for i in range(len(past), first_fresh)),
        kernels=kernels,
        fresh=_fresh(borders[first_fresh:]) if kernels else None,
    )


def _fresh(borders: Sequence[int]) -> Spans | None:
    """Return the rows between some borders, whose keys stand where their queries do."""
    return join_spans(
        [
            Span(start, stop - start, stop - start, range(start, stop, BLOCK))
            for start, stop in itertools.pairwise(borders)
        ]
    )


def _groups(lengths: Sequence[int], start: int, device: torch.device | str) -> list[Group]:
    groups: list[Group] = []
    for first, stop in alike(lengths):
        token = groups[-1].stop if groups else start
        groups.append(_group(lengths[first:stop], token, device))
    return groups


def _group(lengths: Sequence[int], start: int, device: torch.device | str) -> Group:
    num_rows, longest, total = len(lengths), max(lengths), sum(lengths)
    if total == num_rows * longest:
        return Group(start, start + total, num_rows)
    length_B1 = torch.tensor(lengths)[:, None]
    first_B1 = torch.cumsum(length_B1, 0) - length_B1
    step_1L = torch.arange(longest)[None, :]
    real_BL = step_1L < length_B1
    return Group(
        start,
        start + total,
        num_rows,
        gather_BL=(first_B1 + step_1L * real_BL).to(device),
        keep_N=real_BL.flatten().nonzero().flatten().to(device),
        mask_B11L=real_BL[:, None, None, :].to(device),
    )
