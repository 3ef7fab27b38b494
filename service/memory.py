"""How much memory the engine may still take here, and its bounds made to fit that.

A container that goes beyond its limit is killed without a word, so its limit bounds the engine before any setting does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from adapters.backbone import BackboneSpec
from adapters.errors import EnvironmentProblem
from adapters.runtime.limits import EngineLimits

logger = logging.getLogger(__name__)
_LEAST_BYTES = 32 * 2**20  # with less for keys, values and adapters there is nothing to serve with
_SPARE = 8  # one part in so many stays free, for what nobody counts


def memory_room(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: as its container allows and the machine has; None if unknown.

    Reads control groups of both versions, those above this process's own included.
    """
    rooms = [room for group in _groups(root) if (room := _room_of(group)) is not None]
    if (available := _available(root)) is not None:
        rooms.append(available)
    return max(0, min(rooms)) if rooms else None


def fit_limits(
    limits: EngineLimits,
    room: int,
    backbone: BackboneSpec,
    vocabulary: int,
    itemsize: int,
    past_bytes: int = 0,
) -> EngineLimits:
    """Return bounds that fit into ``room`` bytes: half for keys and values, a quarter for each tier of adapters.

    What a step computes with is left out first, ``past_bytes`` for reading what came before among it.

    Raises:
        EnvironmentProblem: hardly anything would be left.
    """
    taken = step_bytes(limits, backbone, vocabulary, itemsize) + past_bytes
    left = room - room // _SPARE - taken
    if left < _LEAST_BYTES:
        raise EnvironmentProblem(
            f"Beside the backbone '{room}' bytes of memory are left, which is too little to serve with. Allow the "
            "container more memory, or lower HEADSTOCK_STEP_TOKENS."
        )
    cache_bytes = min(limits.cache_bytes, left // 2)
    fitted = replace(
        limits,
        cache_bytes=cache_bytes,
        prefix_bytes=limits.prefix_bytes * cache_bytes // limits.cache_bytes,
        bank_bytes=min(limits.bank_bytes, left // 4),
        host_bytes=min(limits.host_bytes, left // 4),
    )
    if fitted != limits:
        logger.warning("Bounds lowered to the memory there is, %d bytes: %s", room, fitted)
    return fitted


def step_bytes(limits: EngineLimits, backbone: BackboneSpec, vocabulary: int, itemsize: int) -> int:
    """Return about what one step's activations and logits take."""
    widest = max((outputs for _, outputs in backbone.modules.values()), default=0)
    activations = limits.step_tokens * (6 * backbone.hidden_size + 3 * widest) * itemsize
    logits = 3 * limits.max_running * vocabulary * 4
    return activations + logits


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory control groups, from its own up."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            tops = [root / "sys/fs/cgroup/memory"]
        elif not controllers:
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        else:
            continue
        for top in tops:
            own = top / path.lstrip("/")
            # In a container the path is often the host's, and what is mounted is the container's own group.
            folder = own if own.is_dir() else top
            while folder != top.parent:
                yield folder
                folder = folder.parent


def _room_of(group: Path) -> int | None:
    """Return what a control group's limit leaves beside its processes' own pages; None without a limit.

    Mapped files count: libraries that are dropped and read again at each step make a server crawl.
    """
    for limit, used in (
        ("memory.max", ("anon", "file_mapped")),
        ("memory.limit_in_bytes", ("total_rss", "total_mapped_file")),
    ):
        try:
            most = (group / limit).read_text().strip()
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < 2**60:
            return int(most) - sum(int(stat.get(name, 0)) for name in used)
    return None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")), None)
