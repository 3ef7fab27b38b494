"""A flood of long rows under a container's memory limit, with settings that ask for far more than it allows."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.backbone import describe_backbone
from tests.bundles import save_bundle, summarizer
from tests.servers import Callers, running_server, wait_until
from tests.tiny import save_backbone

LIMIT = 1000 * 2**20  # the server takes half of it without a row
# 128 KiB of keys and values a token: 16 rows of 450 tokens take 0.9 GB, if no two begin alike.
WIDE = {
    "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
    "head_dim": 256, "max_position_embeddings": 2048,
}  # fmt: skip


@contextmanager
def memory_group(limit):
    """Give the folder of a control group with a memory limit; skip the test where none can be made."""
    for top, file in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        folder = Path(top) / f"headstock-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / file).exists():
                (folder / file).write_text(str(limit))
                yield folder
                return
        finally:
            wait_until(lambda members=folder / "cgroup.procs": not members.read_text())
            folder.rmdir()
    pytest.skip("No control group with a memory limit can be made here; run as root.")


def times_killed(group):
    """Return how often the kernel ended a process for memory in a group."""
    files = [group / "memory.oom_control", group / "memory.events"]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    return sum(int(x.split()[1]) for x in text.splitlines() if x.startswith("oom_kill "))


def test_a_flood_under_a_memory_limit_is_answered_and_never_killed(tmp_path):
    backbone = save_backbone(tmp_path / "wide", "llama", **WIDE)
    save_bundle(tmp_path / "bundle", describe_backbone(backbone), summarizer())
    new = {"max_new_tokens": 12}
    settings = {"cache_bytes": 4 * 2**30, "dtype": "float32"}
    settings |= {"step_tokens": 2048, "chunk_tokens": 2048}  # all rows run at once, if they may
    inputs = [f"{letter} " + "the warm sun sleeps. " * 60 for letter in "abcdefghijklmnop"]
    call = {"adapter": "summary", "parameters": new}
    with (
        memory_group(LIMIT) as group,
        running_server(tmp_path / "home", str(backbone), group=group, **settings) as (client, _),
    ):
        client.create_version("summary", tmp_path / "bundle")
        callers = Callers(client)
        posted = [callers.post({**call, "inputs": half}) for half in (inputs[:8], inputs[8:])]
        answers = [future.result() for future in posted]
        assert [answer.status_code for answer in answers] == [200] * 2
        assert client.is_healthy()
        assert times_killed(group) == 0
        assert "Bounds lowered" in (tmp_path / "home/server.log").read_text()
