"""The log of workers goes on, and what it holds is put aside when that is long."""

from service.job_workers import keep_short


def test_what_a_long_log_holds_is_put_aside_and_its_writer_goes_on(tmp_path):
    path, before = tmp_path / "worker.log", tmp_path / "worker.log.1"
    keep_short(path)
    with path.open("a") as log:
        for line in ("one", "two", "three", "four"):
            log.write(line)
            log.flush()
            keep_short(path, max_bytes=5)
    assert (before.read_text(), path.read_text()) == ("threefour", "")
