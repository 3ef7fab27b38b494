"""The log of workers: it goes on, and is put aside when it is long."""

from service.job_workers import open_log


def test_a_log_goes_on_until_it_is_long_and_one_is_kept(tmp_path):
    path, before = tmp_path / "worker.log", tmp_path / "worker.log.1"
    for line in ("one", "two", "three", "four"):
        with open_log(path, max_bytes=5) as log:
            log.write(line)
    assert (before.read_text(), path.read_text()) == ("onetwo", "threefour")
