"""Every job's end is told, signed as the openai package checks it, and again until it is taken."""

import threading
from datetime import timedelta

import openai
import pytest
from sqlalchemy import update

from adapters.registry.tables import now
from service.jobs.tables import JobTable
from service.jobs.webhooks import Webhooks
from tests.service.jobs.test_queue import submit
from tests.webhooks import SECRET, receiving


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture
def webhooks(database, receiver):
    return Webhooks(database, receiver.url, SECRET)


@pytest.fixture
def ended(queue):
    """Return what ends a new job as it is told."""

    def make(how="cancelled"):
        job = submit(queue)
        if how == "cancelled":
            return queue.cancel(job.id)
        claimed = queue.claim("a worker")
        if how == "failed":
            return queue.fail(job.id, claimed.attempt, "run_failed", "It broke.")
        return queue.succeed(job.id, claimed.attempt, {}, "films:1", "Registered")

    return make


def change(database, **values):
    with database.write() as session:
        session.execute(update(JobTable).values(**values))


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled"])
def test_an_end_is_told_once_and_openai_s_package_believes_it(webhooks, receiver, ended, how):
    job = ended(how)
    assert webhooks.send_next()
    assert not webhooks.send_next()
    ((body, headers),) = receiver.got
    event = openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=SECRET)
    assert (event.type, event.data.id) == (f"fine_tuning.job.{how}", job.id)
    assert event.created_at == int(job.finished_at.timestamp())


def test_another_secret_s_signature_is_not_believed(webhooks, receiver, ended):
    ended()
    webhooks.send_next()
    ((body, headers),) = receiver.got
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret="another")


def test_what_is_refused_is_sent_again_later_under_the_same_id(webhooks, receiver, ended, database):
    ended()
    receiver.answers = [500, 302]
    for _ in range(2):
        assert webhooks.send_next()
        assert not webhooks.send_next()  # not before its time
        change(database, tell_at=now() - timedelta(seconds=1))
    assert webhooks.send_next()
    assert not webhooks.send_next()
    assert len({headers["webhook-id"] for _, headers in receiver.got}) == 1
    assert len(receiver.got) == 3


def test_nobody_there_is_no_end_of_it(database, receiver, ended):
    ended()
    receiver.server_close()
    webhooks = Webhooks(database, receiver.url, SECRET)
    assert webhooks.send_next()
    assert not webhooks.send_next()


def test_old_ends_and_jobs_that_go_on_are_not_told(webhooks, receiver, ended, queue, database):
    ended("succeeded")
    change(database, finished_at=now() - timedelta(days=4))
    submit(queue)
    assert not webhooks.send_next()
    assert not receiver.got


def test_two_servers_do_not_send_the_same(database, receiver, ended):
    for _ in range(8):
        ended()
    servers = [Webhooks(database, receiver.url, SECRET) for _ in range(2)]

    def send_all(server):
        while server.send_next():
            pass

    threads = [threading.Thread(target=send_all, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({headers["webhook-id"] for _, headers in receiver.got}) == len(receiver.got) == 8
