"""Where a backbone computes: GPUs by number, each process of a fit on its own, and none where there is none."""

import pytest
import torch

from adapters.device import find_device
from adapters.errors import EnvironmentProblem


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "local_rank", "found"),
    [
        ("cpu", 1, "cpu"),
        ("cuda", 0, "cuda:0"),
        ("cuda", 1, "cuda:1"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 0, "cuda:1"),
    ],
)
def test_a_process_gets_the_gpu_that_is_named_or_the_next(two_gpus, name, local_rank, found):
    assert find_device(name, local_rank) == found


def test_a_gpu_that_is_not_there_is_told(two_gpus):
    with pytest.raises(EnvironmentProblem, match=r"no device 'cuda:2': .* finds '2' GPUs"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_without_a_gpu_there_is_none(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"finds '0' GPUs here\. Choose device cpu"):
        find_device(name)
