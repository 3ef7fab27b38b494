"""The data gate's processes: few at once, however many files are sent together."""

import asyncio
import contextlib
import threading

from service.jobs import checking


def test_two_files_are_checked_at_once_and_the_others_wait_their_turn(monkeypatch, tmp_path):
    barrier, most, active, lock = threading.Barrier(3), [0], [0], threading.Lock()

    def check(act, path):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(0.2)  # where three come together, all go on
        with lock:
            active[0] -= 1
        return {"path": path}

    async def send():
        return await asyncio.gather(*(checking.check_upload(tmp_path / f"{i}") for i in range(5)))

    monkeypatch.setattr(checking, "_run_apart", check)
    told = asyncio.run(send())
    assert [each["path"] for each in told] == [str(tmp_path / f"{i}") for i in range(5)]
    assert most[0] == 2
