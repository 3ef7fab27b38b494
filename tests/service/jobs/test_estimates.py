"""What is measured before it is ordered, and what can't be here."""

import asyncio

import pytest

from adapters.errors import InvalidRequest
from service.jobs import estimates
from service.jobs.estimates import Estimates


def test_a_server_without_a_gpu_says_that_it_can_not_measure_one(place, submit, monkeypatch):
    monkeypatch.setattr(estimates, "has_gpu", lambda: False)
    job = place.queue.get(submit(resources={"gpus": 1}))
    measuring = Estimates(place.registry, place.files, place.objects, place.home, 1)
    with pytest.raises(InvalidRequest, match="send it without") as caught:
        asyncio.run(measuring.measure(job.order, job.plan, job.namespace))
    assert caught.value.param == "resources.gpus"
