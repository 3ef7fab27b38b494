"""The low-rank updates of a mixed batch on a GPU: each tile of tokens reads A and B of its own adapter where they lie.

After the shrink and expand kernels of Punica (Chen et al., arXiv 2310.18547) and S-LoRA (Sheng et al., arXiv
2311.03285); a lone token, as of a row that decodes, needs no tile. Sums are split in a fixed way and never added
atomically, so that a row's answer is the same in any batch.
Shape letters: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapters.lora import MAX_RANK

TILE = 16  # tokens of one adapter that a program takes: the fewest rows that tensor cores take
_RANKS = 16  # the same for ranks
# What a warp reads at once for a lone token, 16 ranks of it: each of its 32 threads eight numbers a rank.
_INPUTS = _OUTPUTS = 256
_TILE_INPUTS, _TILE_OUTPUTS = 64, 128  # the same for a tile, whose sums take more registers
_FEWEST = 512  # inputs that a program sums up at least
_MOST_SPLITS = 16  # programs that share a layer's inputs at most
# One: a program then waits for memory once and for other warps never, and many of them fit beside each other.
_WARPS = 1


class TritonKernels:
    """`Kernels.add_lora` on a GPU, in two launches a group of modules."""

    tile = TILE
    joins_rows = (
        False  # a lone token takes another way than a tile of them: so must it in any company
    )

    def __init__(self) -> None:
        self._offsets: dict[tuple[int, ...], Tensor] = {}
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def add_lora(
        self,
        x_TI: Tensor,
        out_TO: Tensor,
        tiles_N3: Tensor,
        table: Tensor,
        group: int,
        widths: Tensor,
    ) -> None:
        """Add each tile's low-rank updates to ``out_TO``, in place.

        Args:
            tiles_N3: int32, on the device; first token, number of tokens (none: nothing is done), adapter of the
                table.
            table: int64 ``[adapters, groups, modules, 3]``, on the device: address of A ``[R, I]``, of B ``[R, O]``
                (both in ``x_TI``'s dtype and multiples of 16), and R.
            widths: int64 outputs of each module of the group, on the CPU; their sum is O.
        """
        assert x_TI.stride(1) == out_TO.stride(1) == 1
        assert x_TI.dtype == out_TO.dtype
        num_tokens, num_inputs = x_TI.shape
        sizes = tuple(widths.tolist())
        split = _split_of(num_inputs)
        num_tiles, num_modules, num_splits = len(tiles_N3), len(sizes), _parts(num_inputs, split)
        low_STMR = x_TI.new_empty(
            (num_splits, num_tokens, num_modules, MAX_RANK), dtype=torch.float32
        )
        is_even = all(size % 16 == 0 for size in (num_inputs, *sizes))
        cells = table[:, group]
        with torch.cuda.device_of(x_TI):  # a launch goes to the current device
            self._launch(
                _shrink, (num_tiles, num_modules, num_splits),
                (x_TI, x_TI.stride(0), num_inputs, low_STMR, low_STMR.stride(0), low_STMR.stride(1),
                 tiles_N3, cells, cells.stride(0)),
                (TILE, _RANKS, _INPUTS, _TILE_INPUTS, split, MAX_RANK, is_even),
            )  # fmt: skip
            self._launch(
                _expand, (num_tiles, num_modules, _parts(max(sizes), _OUTPUTS)),
                (low_STMR, low_STMR.stride(0), low_STMR.stride(1), out_TO, out_TO.stride(0),
                 self._offsets_of(sizes, out_TO.device), tiles_N3, cells, cells.stride(0), num_splits),
                (TILE, _RANKS, _OUTPUTS, _TILE_OUTPUTS, triton.next_power_of_2(num_splits), MAX_RANK, is_even),
            )  # fmt: skip

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        arguments: tuple[Tensor | int, ...],
        constants: tuple[int, ...],
    ) -> None:
        """Launch a kernel as compiled for such arguments: Triton's own look-up takes longer than a layer does.

        Triton compiles anew for another dtype, and where a number or an address is one or a multiple of 16.
        """
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        key = (kernel, device, constants, *map(_kind, arguments))
        compiled = self._compiled.get(key)
        if compiled is None:  # what the interpreter gives is None
            self._compiled[key] = kernel[grid](*arguments, *constants, num_warps=_WARPS)
        else:
            compiled[grid](*arguments, *constants)

    def _offsets_of(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Return where each module's outputs begin, and the end of all; on the device, made once."""
        if sizes not in self._offsets:
            ends = torch.tensor([0, *sizes]).cumsum(0)
            self._offsets[sizes] = ends.to(device)
        return self._offsets[sizes]


def _kind(argument: Tensor | int) -> tuple[object, bool]:
    """Return what Triton compiles for: a tensor's dtype or a number's being one, and a multiple of 16."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    return argument == 1, argument % 16 == 0


def _split_of(num_inputs: int) -> int:
    """Return how many inputs a program sums up: the layer alone decides, so that the order of the sum is fixed."""
    share = _parts(_parts(num_inputs, _MOST_SPLITS), _INPUTS) * _INPUTS
    return max(_FEWEST, share)


def _parts(size: int, part: int) -> int:
    return -(-size // part)


@triton.jit
def _shrink(
    x, x_stride, num_inputs, low, low_split, low_token, tiles, table, table_adapter,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, INPUTS: tl.constexpr, TILE_INPUTS: tl.constexpr,
    SPLIT: tl.constexpr, MOST: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Write ``A x`` of one tile, one module and one part of the inputs, in fp32."""
    tile, module, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, num_tokens = tl.load(tiles + tile * 3).to(tl.int64), tl.load(tiles + tile * 3 + 1)
    cell = table + tl.load(tiles + tile * 3 + 2) * table_adapter + module * 3
    a = tl.load(cell).to(tl.pointer_type(x.dtype.element_ty))
    rank = tl.load(cell + 2, mask=num_tokens > 0, other=0)
    x_first = x + first * x_stride
    low_first = low + part * low_split + module * MOST + first * low_token
    start, stop = part * SPLIT, tl.minimum(num_inputs, (part + 1) * SPLIT)
    if IS_EVEN:  # what is read from memory tells Triton nothing, and it would load number by number
        a, stop = tl.multiple_of(a, 16), tl.multiple_of(stop, 16)
    if num_tokens == 1:
        _shrink_token(x_first, a, rank, num_inputs, start, stop, low_first, RANKS, INPUTS, SPLIT)
    else:
        _shrink_tile(
            x_first, x_stride, num_tokens, a, rank, num_inputs, start, stop, low_first, low_token,
            TOKENS, RANKS, TILE_INPUTS,
        )  # fmt: skip


@triton.jit
def _shrink_token(
    x, a, rank, num_inputs, start, stop, low,
    RANKS: tl.constexpr, INPUTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    LANES: tl.constexpr = (
        32  # each sums up neighbouring inputs by itself; together they do so once, at the end
    )
    own, column = tl.arange(0, RANKS), tl.arange(0, INPUTS)
    for begin in range(0, rank, RANKS):
        has_rank = begin + own < rank
        sums_RL = tl.zeros((RANKS, LANES), dtype=tl.float32)
        for offset in tl.static_range(0, SPLIT, INPUTS):
            i = start + offset + column
            a_RI = tl.load(
                a + (begin + own)[:, None] * num_inputs + i[None, :],
                mask=has_rank[:, None] & (i < stop)[None, :], other=0.0,
            )  # fmt: skip
            x_I = tl.load(x + i, mask=i < stop, other=0.0).to(tl.float32)
            terms_RI = a_RI.to(tl.float32) * x_I[None, :]
            sums_RL += tl.sum(tl.reshape(terms_RI, (RANKS, LANES, INPUTS // LANES)), axis=2)
        tl.store(low + begin + own, tl.sum(sums_RL, axis=1), mask=has_rank)


@triton.jit
def _shrink_tile(
    x, x_stride, num_tokens, a, rank, num_inputs, start, stop, low, low_token,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    token, own, column = tl.arange(0, TOKENS), tl.arange(0, RANKS), tl.arange(0, INPUTS)
    has_token = (token < num_tokens)[:, None]
    for begin in range(0, rank, RANKS):
        has_rank = begin + own < rank
        sums_TR = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
        for offset in range(start, stop, INPUTS):
            i = offset + column
            x_TI = tl.load(
                x + token[:, None] * x_stride + i[None, :],
                mask=has_token & (i < stop)[None, :], other=0.0,
            )  # fmt: skip
            a_IR = tl.load(
                a + (begin + own)[None, :] * num_inputs + i[:, None],
                mask=(i < stop)[:, None] & has_rank[None, :], other=0.0,
            )  # fmt: skip
            sums_TR += tl.dot(x_TI, a_IR, input_precision="ieee")
        cells = low + token[:, None] * low_token + (begin + own)[None, :]
        tl.store(cells, sums_TR, mask=has_token & has_rank[None, :])


@triton.jit
def _expand(
    low, low_split, low_token, out, out_stride, offsets, tiles, table, table_adapter, num_splits,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, OUTPUTS: tl.constexpr, TILE_OUTPUTS: tl.constexpr,
    SPLITS: tl.constexpr, MOST: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Add ``B`` times the low-rank sums to some outputs of one tile and one module."""
    tile, module, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin_module = tl.load(offsets + module)
    width = tl.load(offsets + module + 1) - begin_module
    first, num_tokens = tl.load(tiles + tile * 3).to(tl.int64), tl.load(tiles + tile * 3 + 1)
    cell = table + tl.load(tiles + tile * 3 + 2) * table_adapter + module * 3
    b = tl.load(cell + 1).to(tl.pointer_type(out.dtype.element_ty))
    rank = tl.load(cell + 2, mask=num_tokens > 0, other=0)
    low_first = low + module * MOST + first * low_token
    if IS_EVEN:
        b, width, begin_module = (
            tl.multiple_of(b, 16), tl.multiple_of(width, 16), tl.multiple_of(begin_module, 16)
        )  # fmt: skip
    out_first = out + first * out_stride + begin_module
    if rank > 0 and block * OUTPUTS < width:
        if num_tokens == 1:
            _expand_token(
                low_first, low_split, num_splits, b, rank, width, block, out_first,
                RANKS, OUTPUTS, SPLITS,
            )  # fmt: skip
        else:
            for part in range(0, OUTPUTS // TILE_OUTPUTS):
                _expand_tile(
                    low_first, low_split, low_token, num_splits, num_tokens, b, rank, width,
                    block * (OUTPUTS // TILE_OUTPUTS) + part, out_first, out_stride,
                    TOKENS, RANKS, TILE_OUTPUTS,
                )  # fmt: skip


@triton.jit
def _expand_token(
    low, low_split, num_splits, b, rank, width, block, out,
    RANKS: tl.constexpr, OUTPUTS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = out.dtype.element_ty
    own, part, o = (
        tl.arange(0, RANKS),
        tl.arange(0, SPLITS),
        block * OUTPUTS + tl.arange(0, OUTPUTS),
    )
    before_O = tl.load(out + o, mask=o < width, other=0.0)
    sums_O = tl.zeros((OUTPUTS,), dtype=tl.float32)
    for begin in range(0, rank, RANKS):
        has_rank = begin + own < rank
        b_RO = tl.load(
            b + (begin + own)[:, None] * width + o[None, :],
            mask=has_rank[:, None] & (o < width)[None, :], other=0.0,
        )  # fmt: skip
        low_SR = tl.load(
            low + part[:, None] * low_split + (begin + own)[None, :],
            mask=(part < num_splits)[:, None] & has_rank[None, :], other=0.0,
        )  # fmt: skip
        low_R = tl.sum(low_SR, axis=0).to(dtype).to(tl.float32)
        sums_O += tl.sum(b_RO.to(tl.float32) * low_R[:, None], axis=0)
    tl.store(out + o, (before_O.to(tl.float32) + sums_O).to(dtype), mask=o < width)


@triton.jit
def _expand_tile(
    low, low_split, low_token, num_splits, num_tokens, b, rank, width, block, out, out_stride,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = out.dtype.element_ty
    token, own = tl.arange(0, TOKENS), tl.arange(0, RANKS)
    has_token, o = (token < num_tokens)[:, None], block * OUTPUTS + tl.arange(0, OUTPUTS)
    sums_TO = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for begin in range(0, rank, RANKS):
        has_rank = begin + own < rank
        low_TR = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
        for part in range(0, num_splits):
            cells = low + token[:, None] * low_token + part * low_split + (begin + own)[None, :]
            low_TR += tl.load(cells, mask=has_token & has_rank[None, :], other=0.0)
        b_RO = tl.load(
            b + (begin + own)[:, None] * width + o[None, :],
            mask=has_rank[:, None] & (o < width)[None, :], other=0.0,
        )  # fmt: skip
        sums_TO += tl.dot(low_TR.to(dtype), b_RO, input_precision="ieee")
    places, mask = out + token[:, None] * out_stride + o[None, :], has_token & (o < width)[None, :]
    before_TO = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    tl.store(places, (before_TO + sums_TO).to(dtype), mask=mask)
