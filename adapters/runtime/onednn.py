"""Bounds on what oneDNN keeps: without them a process grows with every new number of tokens it has seen."""

from __future__ import annotations

import os

# A compiled product for each of a pass's shapes, with room for passes of another length. The defaults are 1,024.
_PRODUCTS = "64"


def bound_caches() -> None:
    """Let oneDNN and the layer between it and torch keep the last products only; before the first is computed.

    Batches that are not padded rarely have the same number of tokens twice, so what is kept is rarely used again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRODUCTS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _PRODUCTS)
