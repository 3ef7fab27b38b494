"""The engine's bounds fit the memory there is, by the files of both versions of control groups."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.errors import EnvironmentProblem
from adapters.runtime import families
from adapters.runtime.cache import READ_BYTES
from adapters.runtime.limits import EngineLimits
from service.memory import fit_limits, memory_room, step_bytes

MB = 2**20


def machine(root, cgroup, available_mb=8000):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available_mb * 1024} kB\n")
    return root


def group(root, path, files):
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_a_limit_of_version_two_counts_from_what_can_not_be_dropped(tmp_path):
    root = machine(tmp_path, "0::/box\n")
    group(
        root,
        "box",
        {
            "memory.max": f"{1000 * MB}\n",
            "memory.stat": f"anon {200 * MB}\nfile 5\nfile_mapped {100 * MB}\n",
        },
    )
    assert memory_room(root) == 700 * MB


def test_a_limit_of_version_one_is_found_beside_other_controllers(tmp_path):
    root = machine(tmp_path, "4:memory:/box\n3:cpu:/\n0::/\n")
    files = {
        "memory.limit_in_bytes": f"{500 * MB}",
        "memory.stat": f"rss 1\ntotal_rss {100 * MB}\n",
    }
    group(root, "memory/box", files)
    assert memory_room(root) == 400 * MB


def test_the_smallest_of_the_limits_above_counts(tmp_path):
    root = machine(tmp_path, "0::/pod/box\n")
    group(root, "pod", {"memory.max": f"{600 * MB}", "memory.stat": f"anon {500 * MB}\n"})
    group(root, "pod/box", {"memory.max": f"{400 * MB}", "memory.stat": f"anon {50 * MB}\n"})
    assert memory_room(root) == 100 * MB


def test_in_a_container_the_path_is_the_hosts_and_the_mount_its_own(tmp_path):
    root = machine(tmp_path, "0::/host/path/that/is/not/mounted\n")
    group(root, "", {"memory.max": f"{900 * MB}", "memory.stat": f"anon {100 * MB}\n"})
    assert memory_room(root) == 800 * MB


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_without_a_limit_the_machine_decides(tmp_path, limit):
    root = machine(tmp_path, "0::/box\n", available_mb=123)
    name = "memory.max" if limit == "max" else "memory.limit_in_bytes"
    group(root, "box", {name: limit, "memory.stat": "anon 1\ntotal_rss 1\n"})
    assert memory_room(root) == 123 * MB


def test_nothing_is_known_where_there_are_no_such_files(tmp_path):
    assert memory_room(tmp_path) is None


def test_a_group_that_is_full_leaves_nothing(tmp_path):
    root = machine(tmp_path, "0::/box\n")
    group(root, "box", {"memory.max": f"{100 * MB}", "memory.stat": f"anon {150 * MB}\n"})
    assert memory_room(root) == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(room=st.integers(60 * MB, 2**36), asked=st.integers(MB, 2**34))
def test_all_bounds_together_stay_below_the_room(room, asked, decoder_spec):
    limits = EngineLimits(
        cache_bytes=asked, bank_bytes=2 * asked, host_bytes=asked // 2, step_tokens=64
    )
    fitted = fit_limits(limits, room, decoder_spec, 400, 4)
    taken = fitted.cache_bytes + fitted.bank_bytes + fitted.host_bytes
    assert taken + step_bytes(limits, decoder_spec, 400, 4) < room
    assert fitted.prefix_bytes * limits.cache_bytes <= limits.prefix_bytes * fitted.cache_bytes
    if 4 * taken < room // 2 and room > 8 * asked * 4:
        assert fitted == limits


def test_too_little_memory_is_told_at_the_start(decoder_spec):
    with pytest.raises(EnvironmentProblem, match="'20000000' bytes"):
        fit_limits(EngineLimits(), 20_000_000, decoder_spec, 400, 4)


def test_reading_the_past_by_torch_is_counted(decoder_spec, monkeypatch):
    limits, room = EngineLimits(step_tokens=64), 600 * MB
    without = fit_limits(limits, room, decoder_spec, 400, 4)
    counted = fit_limits(limits, room, decoder_spec, 400, 4, past_bytes=200 * MB)
    assert counted.cache_bytes == without.cache_bytes - 100 * MB
    packed = load_backbone(decoder_spec, "float32")
    cell_bytes = 2 * (2 * 2 + 4) * 8 * 4  # keys and values of two heads, twice, and of four
    with monkeypatch.context() as patch:
        patch.setattr(families, "load_kernels", lambda: None)
        assert families.past_bytes(packed, 100) == READ_BYTES
        assert families.past_bytes(packed, 10**6) == 10**6 * cell_bytes
    monkeypatch.setattr(families, "load_kernels", object)
    assert families.past_bytes(packed, 10**6) == 0
    padded = load_backbone(decoder_spec, "float32", is_packed=False)
    assert families.past_bytes(padded, 100) == READ_BYTES


def test_an_encoder_reads_no_past(encoder_spec):
    padded = load_backbone(encoder_spec, "float32", is_packed=False)
    assert families.past_bytes(padded, 10**6) == 0
