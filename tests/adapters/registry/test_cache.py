"""The cache of bundles keeps to its bound, keeps what was asked for last, and never shows half a bundle."""

import os
import time

import pytest

from adapters.registry.cache import BundleCache

KIB = 2**10


def add(cache, digest, num_bytes=10 * KIB, age=3600):
    with cache.adding(digest) as folder:
        (folder / "weights").write_bytes(b"x" * num_bytes)
    if age:
        then = time.time() - age
        os.utime(cache.folder(digest), (then, then))


def digests(cache):
    return sorted(path.name for path in cache.folder("x").parent.iterdir())


def test_what_was_not_asked_for_the_longest_goes_first(tmp_path):
    cache = BundleCache(tmp_path / "cache", 64 * KIB)
    for number in range(6):
        add(cache, f"{number}", age=3600 - number)
    assert cache.find("0") is not None  # now it is the latest
    add(cache, "6")
    assert digests(cache) == ["0", "2", "3", "4", "5", "6"]
    assert cache.find("1") is None


def test_what_was_asked_for_just_now_stays_whatever_the_bound(tmp_path):
    cache = BundleCache(tmp_path / "cache", 16 * KIB)
    for number in range(4):
        add(cache, f"{number}", age=0)
    assert digests(cache) == ["0", "1", "2", "3"]


def test_a_full_disk_makes_room_before_the_bound_and_what_was_left_half_done_goes(tmp_path):
    cache = BundleCache(tmp_path / "cache", None)
    for number in range(4):
        add(cache, f"{number}", age=3600 - number)
    (tmp_path / "cache" / ".killed").mkdir()
    os.utime(tmp_path / "cache" / ".killed", (0, 0))
    cache.make_room()
    assert digests(cache) == ["2", "3"]


def test_half_a_bundle_is_not_there(tmp_path):
    cache = BundleCache(tmp_path / "cache", None)

    def fail():
        with cache.adding("half") as folder:
            (folder / "weights").write_bytes(b"x")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert cache.find("half") is None
    assert digests(cache) == []


def test_a_bundle_that_two_fetch_at_once_is_there_once(tmp_path):
    cache = BundleCache(tmp_path / "cache", None)
    with cache.adding("both") as folder:
        (folder / "weights").write_bytes(b"x")
        add(cache, "both")
    assert digests(cache) == ["both"]
    cache.remove("both")
    cache.remove("both")
    assert digests(cache) == []
