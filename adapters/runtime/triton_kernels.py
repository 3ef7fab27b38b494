"""The low-rank updates of a mixed batch on a GPU: each tile of tokens reads A and B of its own adapter where they lie.

After the shrink and expand kernels of Punica (Chen et al., arXiv 2310.18547) and S-LoRA (Sheng et al., arXiv
2311.03285); sums are split in a fixed way and never added atomically, so that a token's answer is the same in any
batch.
Shape letters: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adapters.lora import MAX_RANK

TILE = 16  # tokens of one adapter that a program takes: the fewest rows that tensor cores take
_RANKS = 16  # the same for ranks
_INPUTS = 128  # inputs that a program reads at once
_OUTPUTS = 128  # outputs that a program writes
_SPLIT = 2048  # inputs that one program sums up: wider layers are shared by several


class TritonKernels:
    """`Kernels.add_lora` on a GPU, in two launches a group of modules."""

    tile = TILE

    def __init__(self) -> None:
        self._offsets: dict[tuple[int, ...], Tensor] = {}

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
            tiles_N3: int32, on the device; first token, number of tokens, adapter of the table.
            table: int64 ``[adapters, groups, modules, 3]``, on the device: address of A ``[R, I]``, of B ``[R, O]``
                (both in ``x_TI``'s dtype), and R.
            widths: int64 outputs of each module of the group, on the CPU; their sum is O.
        """
        assert x_TI.stride(1) == out_TO.stride(1) == 1
        assert x_TI.dtype == out_TO.dtype
        num_tokens, num_inputs = x_TI.shape
        sizes = tuple(widths.tolist())
        num_tiles, num_modules, num_splits = len(tiles_N3), len(sizes), _parts(num_inputs, _SPLIT)
        low_STMR = x_TI.new_empty(
            (num_splits, num_tokens, num_modules, MAX_RANK), dtype=torch.float32
        )
        cells = table[:, group]
        with torch.cuda.device_of(x_TI):  # a launch goes to the current device
            _shrink[(num_tiles, num_modules, num_splits)](
                x_TI, x_TI.stride(0), num_inputs, low_STMR, low_STMR.stride(0), low_STMR.stride(1),
                tiles_N3, cells, cells.stride(0),
                TILE, _RANKS, _INPUTS, _SPLIT, MAX_RANK,
            )  # fmt: skip
            _expand[(num_tiles, num_modules, _parts(max(sizes), _OUTPUTS))](
                low_STMR, low_STMR.stride(0), low_STMR.stride(1), out_TO, out_TO.stride(0),
                self._offsets_of(sizes, out_TO.device), tiles_N3, cells, cells.stride(0),
                num_splits, TILE, _RANKS, _OUTPUTS, MAX_RANK,
            )  # fmt: skip

    def _offsets_of(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """Return where each module's outputs begin, and the end of all; on the device, made once."""
        if sizes not in self._offsets:
            ends = torch.tensor([0, *sizes]).cumsum(0)
            self._offsets[sizes] = ends.to(device)
        return self._offsets[sizes]


def _parts(size: int, part: int) -> int:
    return -(-size // part)


@triton.jit
def _shrink(
    x, x_stride, num_inputs, low, low_split, low_token, tiles, table, table_adapter,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, INPUTS: tl.constexpr, SPLIT: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Write ``A x`` of one tile, one module and one part of the inputs, in fp32."""
    tile, module, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, num_tokens = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1)
    cell = table + tl.load(tiles + tile * 3 + 2) * table_adapter + module * 3
    a = tl.load(cell).to(tl.pointer_type(x.dtype.element_ty))
    rank = tl.load(cell + 2)
    token, own, column = tl.arange(0, TOKENS), tl.arange(0, RANKS), tl.arange(0, INPUTS)
    has_token = (token < num_tokens)[:, None]
    x_rows = x + (first + token).to(tl.int64)[:, None] * x_stride
    low_rows = low + part * low_split + module * MOST
    low_rows += (first + token).to(tl.int64)[:, None] * low_token
    stop = tl.minimum(num_inputs, (part + 1) * SPLIT)
    for begin in range(0, rank, RANKS):
        has_rank = begin + own < rank
        a_rows = a + (begin + own)[None, :] * num_inputs
        sums = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
        for start in range(part * SPLIT, stop, INPUTS):
            i = start + column
            x_TI = tl.load(x_rows + i[None, :], mask=has_token & (i < stop)[None, :], other=0.0)
            a_IR = tl.load(
                a_rows + i[:, None], mask=(i < stop)[:, None] & has_rank[None, :], other=0.0
            )
            sums += tl.dot(x_TI, a_IR, input_precision="ieee")
        tl.store(low_rows + (begin + own)[None, :], sums, mask=has_token & has_rank[None, :])


@triton.jit
def _expand(
    low, low_split, low_token, out, out_stride, offsets, tiles, table, table_adapter, num_splits,
    TOKENS: tl.constexpr, RANKS: tl.constexpr, OUTPUTS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Add ``B`` times the low-rank sums to some outputs of one tile and one module."""
    tile, module, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin_module = tl.load(offsets + module)
    width = tl.load(offsets + module + 1) - begin_module
    first, num_tokens = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1)
    cell = table + tl.load(tiles + tile * 3 + 2) * table_adapter + module * 3
    rank = tl.load(cell + 2)
    if rank > 0 and block * OUTPUTS < width:
        dtype: tl.constexpr = out.dtype.element_ty
        b = tl.load(cell + 1).to(tl.pointer_type(dtype))
        token, own, column = tl.arange(0, TOKENS), tl.arange(0, RANKS), tl.arange(0, OUTPUTS)
        has_token, o = (token < num_tokens)[:, None], block * OUTPUTS + column
        low_rows = low + (first + token).to(tl.int64)[:, None] * low_token + module * MOST
        sums = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
        for begin in range(0, rank, RANKS):
            has_rank = begin + own < rank
            low_TR = tl.zeros((TOKENS, RANKS), dtype=tl.float32)
            for part in range(0, num_splits):
                cells = low_rows + part * low_split + (begin + own)[None, :]
                low_TR += tl.load(cells, mask=has_token & has_rank[None, :], other=0.0)
            b_RO = tl.load(
                b + (begin + own)[:, None] * width + o[None, :],
                mask=has_rank[:, None] & (o < width)[None, :], other=0.0,
            )  # fmt: skip
            sums += tl.dot(low_TR.to(dtype), b_RO, input_precision="ieee")
        places = (
            out + (first + token).to(tl.int64)[:, None] * out_stride + begin_module + o[None, :]
        )
        mask = has_token & (o < width)[None, :]
        before = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        tl.store(places, (before + sums).to(dtype), mask=mask)
