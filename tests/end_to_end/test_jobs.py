"""Training jobs over HTTP, by the stock openai package: from a file to an adapter that is served."""

import pytest

from tests.jobs import goes_on_from_a_parent, write_films
from tests.servers import running_server, wait_until
from tests.webhooks import SECRET, receiving

openai = pytest.importorskip(
    "openai", reason="openai is not installed (make test-backends does it)."
)

TINY = {"epochs": 2, "batch_tokens": 64, "must_learn": False}


@pytest.fixture(scope="module")
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory, decoder_folder, receiver):
    home = tmp_path_factory.mktemp("jobs-home")
    hook = {"webhook_url": receiver.url, "webhook_secret": SECRET}
    with running_server(home, str(decoder_folder), dtype="float32", **hook) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


@pytest.fixture(scope="module")
def sdk(client):
    return openai.OpenAI(base_url=f"{client._http.base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def films(sdk, tmp_path_factory):
    path = write_films(tmp_path_factory.mktemp("films") / "films.jsonl")
    return sdk.files.create(file=path.open("rb"), purpose="fine-tune").id


def order(sdk, films, **more):
    ours = {"training": TINY, "task": {"test_share": 0.25}, **more.pop("extra_body", {})}
    return sdk.fine_tuning.jobs.create(
        model="tiny-llama", training_file=films, extra_body=ours, **more
    )


def ended(sdk, job):
    def look():
        found = sdk.fine_tuning.jobs.retrieve(job.id)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, seconds=180)


def test_a_job_ends_with_an_adapter_that_is_served(sdk, client, films):
    job = order(
        sdk,
        films,
        seed=3,
        metadata={"team": "support"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        extra_body={"register": {"name": "films", "alias": "production"}},
    )
    done = ended(sdk, job)
    assert (done.status, done.fine_tuned_model) == ("succeeded", "films:1"), done.error
    assert done.trained_tokens > 0
    (prediction,) = client.predict(done.fine_tuned_model, "a good film")
    assert prediction["label"] in ("pos", "neg")
    assert client.get_adapter("films")["aliases"]["production"]["version"] == 1
    events = list(sdk.fine_tuning.jobs.list_events(job.id))
    assert events[0].message.startswith("Registered 'films:1'")
    assert events[-1].message.startswith("Created")
    (checkpoint,) = sdk.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == "films:1"
    assert job.id in [each.id for each in sdk.fine_tuning.jobs.list(metadata={"team": "support"})]
    followed = [event["message"] for event in client.job_events(job.id)]
    assert followed == [event.message for event in reversed(events)]


def test_what_a_finished_job_made_becomes_another_adapter_s_version_too(sdk, client, films):
    job = order(sdk, films, extra_body={"register": {"name": "made"}})
    body = {"name": "copied", "job": job.id, "note": "from its job"}
    refused = client._http.post("/v1/adapters", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "job")
    assert client._http.get(f"/v1/fine_tuning/jobs/{job.id}/report").status_code == 404
    assert ended(sdk, job).status == "succeeded"
    made = client._http.post("/v1/adapters", json=body).json()
    assert (made["name"], made["version"], made["note"]) == ("copied", 1, "from its job")
    assert made["digest"] == client.get_adapter("made")["versions"][0]["digest"]
    assert client.predict("copied", "a good film")[0]["label"] in ("pos", "neg")
    missing = client._http.post("/v1/adapters", json={**body, "job": "ftjob-none"})
    assert missing.status_code == 404
    both = client._http.post("/v1/adapters", json={**body, "url": "file:///x"})
    assert both.status_code == 400
    report = client._http.get(f"/v1/fine_tuning/jobs/{job.id}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "sandbox" in report.headers["content-security-policy"]
    assert "accuracy" in report.text
    assert client._http.get(f"/v1/fine_tuning/jobs/{job.id}/log").status_code == 200


def test_a_job_goes_on_from_a_version(client, films):
    goes_on_from_a_parent(client, films)


def test_the_webhook_is_told_that_a_job_has_ended(sdk, receiver, films):
    job = order(sdk, films, extra_body={"register": {"name": "told"}})
    sdk.fine_tuning.jobs.cancel(job.id)

    def told():
        events = [sdk.webhooks.unwrap(body, head, secret=SECRET) for body, head in receiver.got]
        return [event.type for event in events if event.data.id == job.id]

    assert wait_until(told) == ["fine_tuning.job.cancelled"]


def test_a_stream_goes_on_after_the_event_that_was_seen_last(client, sdk, films):
    job = order(sdk, films, extra_body={"register": {"name": "streamed"}})
    everything = list(client.job_events(job.id, follow=True))
    numbers = [int(event["id"].removeprefix("ftevent-")) for event in everything]
    assert numbers == sorted(set(numbers))
    path = f"/v1/fine_tuning/jobs/{job.id}/events"
    again = client._http.get(
        path, params={"stream": "true"}, headers={"Last-Event-ID": str(numbers[-2])}
    ).text
    assert f"id: {numbers[-1]}\n" in again
    assert f"id: {numbers[-2]}\n" not in again
    assert again.endswith("data: [DONE]\n\n")


def test_the_same_key_gives_the_same_job(sdk, films):
    headers = {"Idempotency-Key": "once"}
    jobs = [order(sdk, films, suffix="Once More!", extra_headers=headers).id for _ in range(2)]
    assert len(set(jobs)) == 1
    with pytest.raises(openai.ConflictError, match="another order"):
        order(sdk, films, suffix="other", extra_headers=headers)
    assert ended(sdk, sdk.fine_tuning.jobs.retrieve(jobs[0])).fine_tuned_model == "once-more:1"


def test_a_job_is_paused_resumed_and_cancelled(sdk, films):
    long = {**TINY, "epochs": 2000, "checkpoint_seconds": 0.2}
    job = order(sdk, films, extra_body={"training": long, "register": {"name": "long"}})
    wait_until(lambda: "step" in str(sdk.fine_tuning.jobs.list_events(job.id).data), seconds=120)
    sdk.fine_tuning.jobs.pause(job.id)
    wait_until(lambda: sdk.fine_tuning.jobs.retrieve(job.id).paused)
    assert sdk.fine_tuning.jobs.retrieve(job.id).status == "queued"
    sdk.fine_tuning.jobs.resume(job.id)
    wait_until(
        lambda: "goes on" in str(list(sdk.fine_tuning.jobs.list_events(job.id))), seconds=120
    )
    sdk.fine_tuning.jobs.cancel(job.id)
    assert ended(sdk, job).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="'cancelled'"):
        sdk.fine_tuning.jobs.resume(job.id)


def test_an_estimate_is_kept_beside_what_the_job_took(sdk, client, films):
    body = {
        "model": "tiny-llama",
        "training_file": films,
        "task": {"test_share": 0.25},
        "training": TINY,
        "register": {"name": "measured"},
    }
    response = client._http.post("/v1/fine_tuning/jobs/estimate", json=body)
    assert response.status_code == 200, response.text
    told = response.json()
    assert 0 < told["seconds"]["low"] <= told["seconds"]["high"]
    assert told["fits"]
    assert told["rows"]["train"] == 18
    done = ended(sdk, sdk.fine_tuning.jobs.retrieve(client.create_job(body)["id"]))
    assert done.status == "succeeded", done.error
    assert done.estimate["num_steps"] == told["steps"]
    assert sum(done.seconds.values()) > 0


def bad_orders():
    return {
        "task.type": {"task": {"type": "poetry"}},
        "task.columns": {"task": {"columns": {"text": "body"}}},
        "resources.launcher": {"resources": {"launcher": "kubernetes"}},
        "resources.gpus": {"resources": {"gpus": 1}},
        "resources.threads": {"resources": {"threads": 1000}},
        "lora.rank": {"lora": {"rank": 0}},
        "training.epochs": {"training": {"epochs": 0}},
        "register.name": {"register": {"name": "No Name"}},
        "nonsense": {"nonsense": 1},
    }


@pytest.mark.parametrize("param", bad_orders())
def test_an_order_that_cannot_be_met_names_its_field(sdk, films, param):
    before = len(list(sdk.fine_tuning.jobs.list()))
    with pytest.raises(openai.BadRequestError) as caught:
        order(sdk, films, extra_body=bad_orders()[param])
    assert caught.value.param == param
    assert caught.value.code
    assert len(list(sdk.fine_tuning.jobs.list())) == before


def test_what_is_not_there_is_404_and_a_taken_name_409(sdk, client, films):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.fine_tuning.jobs.create(model="nobody", training_file=films)
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.fine_tuning.jobs.create(model="tiny-llama", training_file="file-none")
    assert caught.value.param == "training_file"
    with pytest.raises(openai.NotFoundError):
        sdk.fine_tuning.jobs.retrieve("ftjob-none")
    done = ended(sdk, order(sdk, films, extra_body={"register": {"name": "taken"}}))
    assert done.status == "succeeded", done.error
    with pytest.raises(openai.ConflictError) as caught:
        order(
            sdk,
            films,
            extra_body={
                "register": {"name": "taken"},
                "task": {"type": "summarization", "columns": {"text": "text", "summary": "label"}},
            },
        )
    assert caught.value.param == "register.name"


def test_a_file_with_a_bad_line_is_refused_by_its_line(sdk, tmp_path):
    path = write_films(tmp_path / "films.jsonl")
    with path.open("a") as file:
        file.write('{"text": "no label"}\n')
    with pytest.raises(openai.BadRequestError, match="Line 25"):
        sdk.files.create(file=path.open("rb"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match=r"films\.exe"):
        sdk.files.create(file=("films.exe", b"{}"), purpose="fine-tune")


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"purpose": "assistants"}, "purpose is 'assistants'"), ({}, "There is no field 'purpose'")],
)
def test_a_file_for_another_purpose_is_refused(client, fields, said):
    response = client._http.post("/v1/files", data=fields, files={"file": b"{}"})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "purpose")
    assert error["message"].startswith(said)


def test_files_are_listed_read_and_deleted(sdk, tmp_path):
    path = write_films(tmp_path / "other.jsonl")
    file = sdk.files.create(file=path.open("rb"), purpose="fine-tune")
    assert (file.filename, file.bytes) == ("other.jsonl", path.stat().st_size)
    assert file.report["task"] == "text-classification"
    assert file.id in [each.id for each in sdk.files.list(purpose="fine-tune")]
    assert sdk.files.content(file.id).read() == path.read_bytes()
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)
