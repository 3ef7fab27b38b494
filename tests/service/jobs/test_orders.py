"""What a run of an order is told."""

import pytest
from pydantic import ValidationError

from service.jobs.orders import JobOrder


def order_with(**resources):
    return JobOrder(model="m", training_file="file-1", resources=resources)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda")])
def test_a_job_that_gets_a_gpu_computes_on_it(gpus, device):
    config = order_with(gpus=gpus).run_config({"file-1": "rows.jsonl"}, "m", "regression", None)
    assert config.device == device


def test_gpus_that_a_run_would_not_use_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        order_with(gpus=2)
