"""The CPU kernels of kernels.c, compiled once per machine; without a compiler torch does the same work, slower."""

from __future__ import annotations

import ctypes
import functools
import logging
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.home import default_home
from adapters.runtime.compiling import find_compiler, load_library
from adapters.runtime.spans import Reads, Spans

logger = logging.getLogger(__name__)
TILE = 4  # tokens that one step of the low-rank kernel takes; as in kernels.c
PANEL = 16  # outputs that stand together in a weight of `Kernels.linear`; as in kernels_linear.h
MAX_HEAD, MAX_HEADS = 256, 32  # as in kernels.c
NO_WINDOW = 2**40  # more tokens than any row has
# The arguments of each kernel, as in `_function`. The first of them can be recorded: in the order of kernels.c.
RECORDABLE = {
    "lora": "pnnpnpnpnpn", "attend": "pnnpppnppnnnnf", "rms_norm": "pnppnnf", "silu_mul": "ppnn",
    "rotate": "pnppnnn", "keep": "pnnppnpnn", "add": "pppn", "linear": "pnnnpppnn",
}  # fmt: skip
_SIGNATURES = {**RECORDABLE, "attend_rows": "pnnpnnpnnpnnppnnnfnn"}
_ONE_TYPE = ("linear",)  # those that are there in bf16 alone
_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}

Log = Callable[[str, torch.dtype, tuple[float | None, ...]], None]
_LOG: ContextVar[Log | None] = ContextVar("log", default=None)


class Kernels:
    """The compiled functions; arguments are checked here, for C does not."""

    tile = TILE
    joins_rows = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._typed = bind_typed(library, _SIGNATURES)
        self._has_linear = bool(library.has_linear())
        self.replay = _function(
            library, "replay", "pn"
        )  # recorded calls and their number: see replay.py

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
            tiles_N3: int32; first token, number of tokens (none: nothing is done), adapter of the table.
            table: int64 ``[adapters, groups, modules, 3]``: address of A ``[R, I]``, of B ``[R, O]``, and R.
            widths: int64 outputs of each module of the group; their sum is O.
        """
        assert x_TI.stride(1) == out_TO.stride(1) == 1
        assert x_TI.dtype == out_TO.dtype
        assert x_TI.is_cpu
        self._call(
            "lora", x_TI.dtype,
            x_TI.data_ptr(), x_TI.stride(0), x_TI.shape[1], out_TO.data_ptr(), out_TO.stride(0),
            tiles_N3.data_ptr(), tiles_N3.shape[0],
            table.data_ptr() + group * table.stride(1) * 8, table.stride(0),
            widths.data_ptr(), widths.shape[0],
        )  # fmt: skip

    def attend(
        self,
        query_BHD: Tensor,
        keys_CKD: Tensor,
        values_CKD: Tensor,
        reads: Reads,
        scale: float,
        out_THD: Tensor,
    ) -> None:
        """Write ``out[:B]``: one query token of each row over the cells of its blocks."""
        rows, heads, size = query_BHD.shape
        blocks_BN, lengths_B = reads.blocks_BN, reads.lengths_B
        assert blocks_BN is not None
        assert lengths_B is not None
        assert query_BHD.stride(2) == 1
        assert keys_CKD.is_contiguous()
        assert values_CKD.is_contiguous()
        assert out_THD.is_contiguous()
        assert query_BHD.dtype == keys_CKD.dtype == values_CKD.dtype == out_THD.dtype
        assert query_BHD.is_cpu
        self._call(
            "attend", query_BHD.dtype,
            query_BHD.data_ptr(), query_BHD.stride(0), query_BHD.stride(1),
            keys_CKD.data_ptr(), values_CKD.data_ptr(),
            blocks_BN.data_ptr(), blocks_BN.shape[1], lengths_B.data_ptr(), out_THD.data_ptr(),
            rows, heads, keys_CKD.shape[1], size, scale,
        )  # fmt: skip

    def attend_rows(
        self,
        query_HTD: Tensor,
        keys_KCD: Tensor,
        values_KCD: Tensor,
        spans: Spans,
        scale: float,
        out_THD: Tensor,
        *,
        is_causal: bool = True,
        window: int | None = None,
    ) -> None:
        """Write the output of rows that have several new tokens each, without padding.

        Args:
            spans: ``rows_B4``, int32: first token in the query and the output, new tokens, tokens with those before,
                where the row begins in ``cells_N``; that, int32: the first cell of each block of 16.
            window: a token attends to those less than so many away; None: to all.
        """
        heads, _, size = query_HTD.shape
        assert query_HTD.stride(2) == keys_KCD.stride(2) == values_KCD.stride(2) == 1
        assert out_THD.is_contiguous()
        assert query_HTD.dtype == keys_KCD.dtype == values_KCD.dtype == out_THD.dtype
        assert query_HTD.is_cpu
        self._call(
            "attend_rows", query_HTD.dtype,
            query_HTD.data_ptr(), query_HTD.stride(1), query_HTD.stride(0),
            keys_KCD.data_ptr(), keys_KCD.stride(1), keys_KCD.stride(0),
            values_KCD.data_ptr(), values_KCD.stride(1), values_KCD.stride(0),
            spans.rows_B4.data_ptr(), len(spans.rows_B4), spans.num_tiles, spans.cells_N.data_ptr(), out_THD.data_ptr(),
            heads, keys_KCD.shape[0], size, scale, is_causal, NO_WINDOW if window is None else window,
        )  # fmt: skip

    def rms_norm(self, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        """Return ``weight * x / rms(x)`` over the last dimension, contiguous; Zhang and Sennrich, arXiv 1910.07467."""
        x_TD = x.reshape(-1, x.shape[-1])
        rows, size = x_TD.shape
        assert x_TD.stride(1) == 1
        assert x.dtype == weight_D.dtype
        assert x.is_cpu
        assert weight_D.numel() == size
        out = x.new_empty(x.shape)
        self._call(
            "rms_norm", x.dtype,
            x_TD.data_ptr(), x_TD.stride(0), weight_D.data_ptr(), out.data_ptr(), rows, size, epsilon,
        )  # fmt: skip
        return out

    def rotate(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> None:
        """Rotate heads by their tokens' positions, in place; heads and sizes lie side by side."""
        tokens, heads, size = x_THD.shape
        assert x_THD.stride()[1:] == (size, 1)
        assert x_THD.is_cpu
        assert cos_TD.is_contiguous()
        assert sin_TD.is_contiguous()
        assert cos_TD.shape == sin_TD.shape == (tokens, size)
        assert x_THD.dtype == cos_TD.dtype == sin_TD.dtype
        self._call(
            "rotate", x_THD.dtype,
            x_THD.data_ptr(), x_THD.stride(0), cos_TD.data_ptr(), sin_TD.data_ptr(), tokens, heads, size
        )  # fmt: skip

    def keep(
        self, lines_KTD: Tensor, tokens_N: Tensor | None, cells_N: Tensor, store_CKD: Tensor
    ) -> None:
        """Copy some tokens' keys or values (None: those of the first N) to cells; indices are int64."""
        heads, _, size = lines_KTD.shape
        assert lines_KTD.stride(2) == 1
        assert store_CKD.is_contiguous()
        assert lines_KTD.dtype == store_CKD.dtype
        assert lines_KTD.is_cpu
        assert cells_N.dtype == torch.int64
        assert tokens_N is None or tokens_N.dtype == torch.int64
        self._call(
            "keep", store_CKD.dtype,
            lines_KTD.data_ptr(), lines_KTD.stride(0), lines_KTD.stride(1),
            None if tokens_N is None else tokens_N.data_ptr(), cells_N.data_ptr(), len(cells_N),
            store_CKD.data_ptr(), heads, size,
        )  # fmt: skip

    def silu_mul(self, x: Tensor) -> Tensor:
        """Return ``silu(gate) * up``, ``[..., I]``, of gate and up side by side, ``[..., 2 I]``."""
        assert x.is_contiguous()
        assert x.is_cpu
        size = x.shape[-1] // 2
        out = x.new_empty((*x.shape[:-1], size))
        self._call("silu_mul", x.dtype, x.data_ptr(), out.data_ptr(), x.numel() // (2 * size), size)
        return out

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of two tensors of one shape."""
        assert x.is_contiguous()
        assert y.is_contiguous()
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert x.is_cpu
        out = x.new_empty(x.shape)
        self._call("add", x.dtype, x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel())
        return out

    def fits_linear(self, weight_OI: Tensor) -> bool:
        """Tell whether `linear` takes a weight, on this processor."""
        is_bf16 = weight_OI.dtype == torch.bfloat16 and weight_OI.device.type == "cpu"
        return self._has_linear and is_bf16 and weight_OI.shape[1] % PANEL == 0

    def linear(self, x: Tensor, panels: Tensor, bias_O: Tensor | None, num_outputs: int) -> Tensor:
        """Return ``x W^T + bias``, ``[..., O]``; a token's numbers are the same whatever else is in ``x``.

        Args:
            panels: the weight from `to_panels`.
            bias_O: fp32, contiguous.
        """
        x_TI = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        assert x_TI.stride(1) == 1
        assert x_TI.shape[1] == 2 * panels.shape[1]
        assert x.dtype == panels.dtype == torch.bfloat16
        assert x.is_cpu
        assert bias_O is None or bias_O.dtype == torch.float32
        out = x.new_empty((*x.shape[:-1], num_outputs))
        self._call(
            "linear", torch.bfloat16,
            x_TI.data_ptr(), x_TI.stride(0), x_TI.shape[0], x_TI.shape[1], panels.data_ptr(),
            None if bias_O is None else bias_O.data_ptr(), out.data_ptr(), num_outputs, num_outputs,
        )  # fmt: skip
        return out

    def _call(self, name: str, dtype: torch.dtype, *arguments: float | None) -> None:
        if (log := _LOG.get()) is not None:
            log(name, dtype, arguments)
        self._typed[name][dtype](*arguments)


@contextmanager
def log_calls(log: Log) -> Iterator[None]:
    """Tell ``log`` of each kernel that this thread calls: its name, its dtype and its arguments."""
    token = _LOG.set(log)
    try:
        yield
    finally:
        _LOG.reset(token)


def to_panels(weight_OI: Tensor) -> Tensor:
    """Return a weight as ``[O / 16, I / 2, 16, 2]`` with zeros for missing outputs, as `Kernels.linear` reads it."""
    num_outputs, num_inputs = weight_OI.shape
    missing = -num_outputs % PANEL
    whole = torch.nn.functional.pad(weight_OI, (0, 0, 0, missing)) if missing else weight_OI
    return whole.view(-1, PANEL, num_inputs // 2, 2).permute(0, 2, 1, 3).contiguous()


def fits_attention(num_heads: int, num_kv_heads: int, head_size: int) -> bool:
    """Tell whether the attention kernels take a backbone's heads."""
    shares_evenly = num_heads % num_kv_heads == 0
    return shares_evenly and num_heads <= MAX_HEADS * num_kv_heads and head_size <= MAX_HEAD


def fits(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the kernels take a backbone's dtype and device."""
    return device.type == "cpu" and dtype in _SUFFIX


@functools.cache
def load_kernels(home: Path | None = None) -> Kernels | None:
    """Return the kernels, compiling them if this machine has not yet; None, with the reason logged, if that fails.

    Args:
        home: where compiled kernels are kept.
    """
    try:
        compiler = find_compiler()
        if not compiler:
            logger.warning("No C compiler found; adapters run on torch alone, slower. Install gcc.")
            return None
        return Kernels(load_library(compiler, (home or default_home()) / "kernels"))
    except (OSError, AttributeError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        reason = f"{error} {said.decode(errors='replace')[-500:]}".strip()
        logger.warning("The CPU kernels can't be used (%s); torch runs instead, slower.", reason)
        return None


def bind_typed(
    library: ctypes.CDLL, signatures: Mapping[str, str]
) -> dict[str, dict[torch.dtype, Any]]:
    """Return functions by name and dtype; a signature has a letter an argument, as in `_function`."""
    return {
        name: {
            dtype: _function(library, f"{name}_{suffix}", kinds)
            for dtype, suffix in _SUFFIX.items()
            if dtype == torch.bfloat16 or name not in _ONE_TYPE
        }
        for name, kinds in signatures.items()
    }


def _function(library: ctypes.CDLL, name: str, kinds: str) -> Any:
    """Return a function with its arguments' kinds: p for an address, n for an int64, f for a float."""
    function = library[name]
    function.restype = None
    types: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
    function.argtypes = [types[kind] for kind in kinds]
    return function
