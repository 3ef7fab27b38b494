"""Decode passes as recordings: on a GPU one launch, on a CPU one call replays what takes a thousand by hand.

A recording has fixed shapes and addresses: what differs from pass to pass is copied to where the recording reads it.
On a GPU (CUDA graphs; vLLM and SGLang decode the same way) rows are padded to a few sizes; on a CPU, where a row costs
time, each number of rows has a recording of its own (`replay.py`).

Shape letters: B rows, padding included, N blocks of a row, L cells of a row, D hidden size, S sites, M modules.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.runtime.active import Part
from adapters.runtime.bank import Bank
from adapters.runtime.cache import CacheView, KeyValueCache
from adapters.runtime.kernels import Kernels
from adapters.runtime.pack import Pack
from adapters.runtime.replay import Compute, NotRecordable
from adapters.runtime.route import KernelRoute, Route
from adapters.runtime.spans import BLOCK, Reads, blocks_for

logger = logging.getLogger(__name__)
MOST_ROWS = 256
_ROW_STEP = 16  # beyond it rows are padded to a multiple; below to a power of two
_FEWEST_BLOCKS = 8
_MOST_RECORDINGS = {"cuda": 32, "cpu": 128}  # the least recently used is forgotten
_TOKEN, _POSITION, _CELL, _LENGTH, _BLOCKS = range(5)  # columns of a recording's input

Record = Callable[[Compute], Compute]
Key = tuple[int, int, bool]  # rows, blocks of a row, whether any has an adapter


class DecodeGraphs:
    """Runs passes in which every row decodes.

    Args:
        record: gives what replays a computation, into the same tensor; None records CUDA graphs.
        kernels: on a CPU, what attention is computed by; rows are not padded then.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: Bank,
        cache: KeyValueCache,
        record: Record | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self._backbone = backbone
        self._bank = bank
        self._cache = cache
        self._kernels = kernels
        self._record = record or GraphRecorder()
        self._recordings: OrderedDict[Key, _Recording] = OrderedDict()
        self._seen: set[Key] = set()
        self._route: _StaticRoute | None = None
        self._is_off = False

    def run(self, parts: Sequence[Part], route: Route | None) -> Tensor | None:
        """Return the rows' hidden states ``[rows, D]``, good until the next pass; None if they can't be had this way.

        Args:
            route: what `Bank.route` gave for these rows.

        Raises:
            torch.OutOfMemoryError: a new recording found no room.
        """
        if self._is_off or len(parts) > MOST_ROWS or not _all_decode(parts):
            return None
        if route is not None and not isinstance(route, KernelRoute):
            return None
        num_blocks = max(blocks_for(part.active.num_done + 1) for part in parts)
        num_rows = _padded_rows(len(parts)) if self._kernels is None else len(parts)
        key = (num_rows, _padded_blocks(num_blocks), route is not None)
        if not self._pays(key):
            return None
        static = self._copy(route, num_rows)
        inputs = _input_lines(parts, num_rows, key[1], self._cache.scratch_block)
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._new_recording(key, inputs, static, route)
        if recording is None:
            return None
        self._recordings.move_to_end(key)
        recording.inputs_BX.copy_(inputs)
        try:
            return recording.replay()[: len(parts)]
        except NotRecordable as error:
            self._give_up(error)
            return None

    def _new_recording(
        self,
        key: Key,
        inputs: Tensor,
        static: KernelRoute | None,
        route: Route | None,
    ) -> _Recording | None:
        inputs_BX = inputs.to(self._backbone.device)
        self._bank.use(static)
        try:
            replay = self._record(lambda: self._compute(inputs_BX))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a model does that can't be recorded is no closed list
            self._give_up(error)
            return None
        finally:
            self._bank.use(route)
        recording = self._recordings[key] = _Recording(inputs_BX, replay)
        if len(self._recordings) > _MOST_RECORDINGS[self._backbone.device.type]:
            self._recordings.popitem(last=False)
        return recording

    def _pays(self, key: Key) -> bool:
        """Tell whether a pass should be recorded or is: on a CPU, with its many keys, what comes a second time."""
        if self._kernels is None or key in self._seen:
            return True
        self._seen.add(key)
        return False

    def _give_up(self, error: Exception) -> None:
        logger.warning("Decode passes can't be recorded (%r); each is launched by hand.", error)
        self._is_off = True
        self._recordings.clear()

    def _compute(self, inputs_BX: Tensor) -> Tensor:
        """Run one decode pass on what the input says."""
        num_rows = len(inputs_BX)
        cells_B = inputs_BX[:, _CELL].contiguous()
        pack = Pack(
            bounds=torch.arange(num_rows + 1, device=inputs_BX.device),
            positions_T=inputs_BX[:, _POSITION],
            groups=(),
            num_decoding=num_rows,
            cache=CacheView(self._cache, None, cells_B, (self._reads(inputs_BX),)),
            kernels=self._kernels,
        )
        return self._backbone.hidden_states(inputs_BX[:, _TOKEN], pack)

    def _reads(self, inputs_BX: Tensor) -> Reads:
        """Return what the rows read, all computed from the input, so that a replay computes it anew."""
        num_rows, blocks_BN = len(inputs_BX), inputs_BX[:, _BLOCKS:]
        if self._kernels is not None:
            lengths_B = inputs_BX[:, _LENGTH].to(torch.int32)
            return Reads(num_rows, blocks_BN.to(torch.int32), lengths_B)
        device = inputs_BX.device
        cells_BL = blocks_BN[:, :, None] * BLOCK + torch.arange(BLOCK, device=device)
        cells_BL = cells_BL.flatten(1)
        mask_BL = torch.arange(cells_BL.shape[1], device=device) < inputs_BX[:, _LENGTH, None]
        # As in `cache.py`: padding reads the row's own first cell, for a masked NaN is still a NaN.
        cells_BL = torch.where(mask_BL, cells_BL, cells_BL[:, :1])
        return Reads(num_rows, cells_BL=cells_BL, mask_B11L=mask_BL[:, None, None, :])

    def _copy(self, route: KernelRoute | None, num_rows: int) -> KernelRoute | None:
        """Return a route of so many rows at fixed addresses that does what ``route`` does."""
        if route is None:
            return None
        if self._route is None:
            self._route = _StaticRoute(route)
        return self._route.take(route, num_rows)


@dataclass(frozen=True, slots=True)
class _Recording:
    """Where a recorded pass reads its rows, and what replays it."""

    inputs_BX: Tensor
    replay: Compute


class _StaticRoute:
    """The tiles and the table of whichever route was taken last, always in the same place."""

    def __init__(self, like: KernelRoute) -> None:
        self._tiles_N3 = like.tiles_N3.new_zeros((MOST_ROWS, 3))
        self._table = like.table.new_zeros((MOST_ROWS, *like.table.shape[1:]))
        self._taken: KernelRoute | None = None

    def take(self, route: KernelRoute, num_rows: int) -> KernelRoute:
        if route is not self._taken:
            self._tiles_N3.zero_()  # a tile without tokens is passed over
            # Evenly: threads share the tiles out by their place.
            places = torch.arange(len(route.tiles_N3)) * num_rows // len(route.tiles_N3)
            self._tiles_N3[places.to(self._tiles_N3.device)] = route.tiles_N3
            self._table[: len(route.table)].copy_(route.table)
            self._taken = route
        return KernelRoute(route.kernels, self._tiles_N3[:num_rows], self._table)


class GraphRecorder:
    """Records CUDA graphs, all in one pool of memory, for only one is replayed at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # kernels are compiled and libraries set up, which can't be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the server may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = compute()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def _all_decode(parts: Sequence[Part]) -> bool:
    return all(part.num_new == 1 and part.active.num_done and part.active.blocks for part in parts)


def _padded_rows(num_rows: int) -> int:
    if num_rows <= _ROW_STEP:
        return 1 << (num_rows - 1).bit_length()
    return -(-num_rows // _ROW_STEP) * _ROW_STEP


def _padded_blocks(num_blocks: int) -> int:
    return max(_FEWEST_BLOCKS, 1 << (num_blocks - 1).bit_length())


def _input_lines(parts: Sequence[Part], rows: int, num_blocks: int, scratch: int) -> Tensor:
    """Return int64 ``[B, 4 + N]``: each row's token, position, cell to write, length with the token, blocks.

    Rows of padding write to a block of their own and read what they wrote.
    """
    lines = []
    for part in parts:
        active = part.active
        token = active.num_done
        cell = active.blocks[token // BLOCK] * BLOCK + token % BLOCK
        blocks = active.blocks[:num_blocks]
        blocks = blocks + [scratch] * (num_blocks - len(blocks))
        lines.append([active.tokens(1)[0], token, cell, token + 1, *blocks])
    padding = [0, 0, scratch * BLOCK, 1, *[scratch] * num_blocks]
    return torch.tensor(lines + [padding] * (rows - len(parts)))
