"""Whole runs on CUDA, each task; skipped where there is no device."""

import pytest
import torch

from tests.training.test_tasks import CASES, trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("dtype", ["float32", "nf4"])
@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_task_trains_on_cuda_and_is_served_there(task, family, dtype, tmp_path, request):
    if dtype == "nf4" and family != "decoder":
        pytest.skip("quantised backbones are tested on the decoder")
    spec = request.getfixturevalue(f"{family}_spec")
    result, bundle = trained(task, family, spec, tmp_path, dtype=dtype, device="cuda")
    assert bundle.digest == result.digest
    assert result.problems == []
    assert result.metrics["after"][result.primary_metric] > 0.7, result.metrics
