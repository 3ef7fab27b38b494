"""The client: refused calls sent again, no more often than asked; answers that stream, and ones that break off."""

import json

import httpx
import pytest

import service.client
from service.client import Client, ClientError


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the client would have slept."""
    slept = []
    monkeypatch.setattr(service.client.time, "sleep", slept.append)
    return slept


def client_of(answers, **options):
    """Return a client whose server gives these answers in turn, and the bodies it was sent."""
    client, bodies = Client(**options), []

    def answer(request):
        bodies.append(json.loads(request.content))
        return answers[len(bodies) - 1]

    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    return client, bodies


def refusal(status, **headers):
    error = {"code": "overloaded", "message": "full", "param": None}
    return httpx.Response(status, json={"error": error}, headers=headers)


def good():
    return httpx.Response(200, json={"predictions": [{"label": "a"}]})


def events(*bodies):
    return httpx.Response(200, text="".join(f"data: {json.dumps(body)}\n\n" for body in bodies))


def test_a_refused_call_is_sent_again_after_the_time_asked_for(waits):
    answers = [
        refusal(429, **{"Retry-After": "2"}),
        refusal(503),
        refusal(503, **{"Retry-After": "9999"}),
    ]
    client, bodies = client_of([*answers, good()], retries=3)
    assert client.predict("x", "text", timeout_seconds=5) == [{"label": "a"}]
    assert waits == [2.0, 1.0, 30.0]
    assert len(bodies) == 4
    assert bodies[0]["timeout_seconds"] == 5


@pytest.mark.parametrize(("retries", "sent"), [(0, 1), (2, 3)])
def test_retries_are_bounded_and_off_unless_asked_for(waits, retries, sent):
    client, bodies = client_of([refusal(429)] * 9, retries=retries)
    with pytest.raises(ClientError, match="full") as caught:
        client.predict_many([{"adapter": "x", "input": "a"}])
    assert caught.value.status == 429
    assert (len(bodies), len(waits)) == (sent, retries)


def test_a_prediction_that_a_proxy_found_no_server_for_is_sent_again(waits):
    bad_gateway = httpx.Response(502, text="<html>502 Bad Gateway</html>")
    client, bodies = client_of([bad_gateway, good()], retries=3)
    assert client.predict("x", "text") == [{"label": "a"}]
    client, bodies = client_of([bad_gateway], retries=3)
    with pytest.raises(ClientError, match="502 Bad Gateway") as caught:
        client.create_job({})  # may have been carried out
    assert (caught.value.code, len(bodies), waits) == ("unavailable", 1, [1.0])


def test_other_errors_are_not_tried_again(waits):
    client, bodies = client_of([refusal(500)] * 3, retries=2)
    with pytest.raises(ClientError):
        client.predict("x", "a")
    assert len(bodies) == 1


def test_a_prediction_is_sent_again_over_a_new_connection(waits):
    client, bodies = client_of([])
    answers = [httpx.ConnectError("gone"), httpx.ReadError("broken"), good()]

    def answer(request):
        bodies.append(request)
        if isinstance(answers[len(bodies) - 1], Exception):
            raise answers[len(bodies) - 1]
        return answers[len(bodies) - 1]

    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    client._retries = 2
    assert client.predict("films@production", "a") == [{"label": "a"}]
    assert [request.headers["X-Headstock-Adapter"] for request in bodies] == ["films"] * 3
    bodies.clear()
    with pytest.raises(ClientError, match="No server"):
        client.change_job("ftjob-1", "cancel")
    assert len(bodies) == 1


def test_a_key_is_sent_with_every_call(monkeypatch):
    monkeypatch.setenv("HEADSTOCK_API_KEY", "from the environment")
    assert Client()._http.headers["Authorization"] == "Bearer from the environment"
    assert Client(api_key="given")._http.headers["Authorization"] == "Bearer given"


def test_a_stream_gives_its_events_up_to_the_whole_prediction(waits):
    sent = [{"delta": "a"}, {"delta": "b"}, {"summary": "ab", "done": True}]
    client, bodies = client_of([refusal(503), events(*sent)], retries=1)
    assert list(client.predict_stream("x", "text", timeout_seconds=2, max_new_tokens=5)) == sent
    assert bodies[1] == {
        "adapter": "x",
        "inputs": ["text"],
        "parameters": {"max_new_tokens": 5},
        "stream": True,
        "timeout_seconds": 2,
    }


def test_a_stream_that_fails_or_breaks_off_raises_after_its_deltas():
    error = {"code": "prediction_failed", "message": "not finite", "param": None}
    for last, code in ([{"error": error}], "prediction_failed"), ([], "broken_off"):
        client, _ = client_of([events({"delta": "a"}, *last)])
        stream = client.predict_stream("x", "text")
        assert next(stream) == {"delta": "a"}
        with pytest.raises(ClientError) as caught:
            next(stream)
        assert caught.value.code == code


def test_a_stream_that_is_refused_raises_the_servers_error():
    client, _ = client_of([refusal(400)])
    with pytest.raises(ClientError, match="full") as caught:
        list(client.predict_stream("x", "text"))
    assert caught.value.status == 400


def test_lists_of_adapters_are_read_page_by_page():
    pages = {"": (["a", "b"], True), "b": (["c"], False)}

    def answer(request):
        names, has_more = pages[request.url.params["after"]]
        return httpx.Response(
            200, json={"adapters": [{"name": name} for name in names], "has_more": has_more}
        )

    client = Client()
    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    assert [adapter["name"] for adapter in client.list_adapters()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "url", ["localhost:8000", "", "http://", "http://127.0.0.1:port", "ftp://a"]
)
def test_what_is_no_address_is_said_before_a_call(url):
    with pytest.raises(ClientError, match="Write one such as http://") as caught:
        Client(url)
    assert (caught.value.status, caught.value.code) == (0, "invalid_url")
    assert f"'{url}'" in caught.value.message


def silent_client(**options):
    """Return a client whose server does not answer in time, and for how long it was waited for, call by call."""
    client, waited = Client(**options), []

    def say_nothing(request):
        waited.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("", request=request)

    transport = httpx.MockTransport(say_nothing)
    client._http = httpx.Client(
        base_url="http://test", transport=transport, timeout=client._http.timeout
    )
    return client, waited


def test_a_call_is_waited_for_as_long_as_the_server_may_take_for_it():
    client, waited = silent_client(timeout_seconds=120)
    calls = (
        lambda seconds: client.predict("x", "a", timeout_seconds=seconds),
        lambda seconds: list(client.predict_stream("x", "a", timeout_seconds=seconds)),
    )
    for call in calls:
        for seconds in (None, 5, 600):
            with pytest.raises(ClientError):
                call(seconds)
    assert waited == [120, 120, 610] * 2


def test_a_server_that_is_slow_is_not_said_to_be_gone_nor_given_the_work_twice(waits):
    client, waited = silent_client(timeout_seconds=7, retries=3)
    with pytest.raises(ClientError, match="said nothing for '7' seconds") as caught:
        client.predict("x", "a")
    assert (caught.value.code, len(waited), waits) == ("timeout", 1, [])


def test_a_request_without_an_adapter_is_the_servers_to_refuse():
    client, bodies = client_of([refusal(400)])
    with pytest.raises(ClientError, match="full"):
        client.predict_many([{"input": "a"}])
    assert bodies == [{"requests": [{"input": "a"}]}]


class BrokenOff(httpx.SyncByteStream):
    """A body whose connection breaks off."""

    def __init__(self, text):
        self._text = text

    def __iter__(self):
        yield self._text.encode()
        raise httpx.ReadError("Connection reset by peer")


def follower_of(answers):
    """Return a client whose server gives these answers in turn, or is not there, and the events it was asked for."""
    client, asked = Client(), []

    def answer(request):
        asked.append(request.headers["Last-Event-ID"])
        given = answers[len(asked) - 1]
        if isinstance(given, httpx.Response):
            return given
        raise given

    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
    return client, asked


def event(number):
    return f'id: {number}\nevent: fine_tuning.job.event\ndata: {{"n": {number}}}\n\n'


def test_a_jobs_events_go_on_after_the_server_has_started_again(waits):
    away = httpx.ConnectError("Connection refused")
    unavailable = {"code": "unavailable", "message": "It is stopping.", "param": None}
    client, asked = follower_of([
        httpx.Response(200, stream=BrokenOff(event(1) + "id: 2\n")),
        away, httpx.Response(502), httpx.Response(503, json={"error": unavailable}),
        httpx.Response(200, text=event(2) + "event: done\ndata: [DONE]\n\n"),
    ])  # fmt: skip
    assert list(client.job_events("job", follow=True)) == [{"n": 1}, {"n": 2}]
    assert asked == ["0", "1", "1", "1", "1"]


def test_events_are_not_waited_for_without_end(waits, monkeypatch):
    away = httpx.ConnectError("Connection refused")
    client, asked = follower_of([away])
    with pytest.raises(ClientError, match="No server answers"):
        list(client.job_events("job", follow=True))
    assert len(asked) == 1
    now = [100.0]
    monkeypatch.setattr(
        service.client.time, "monotonic", lambda: now.append(now[-1] + 5) or now[-1]
    )
    client, asked = follower_of([httpx.Response(200, stream=BrokenOff(event(1))), *[away] * 99])
    with pytest.raises(ClientError, match="No server answers"):
        list(client.job_events("job", follow=True))
    assert 3 < len(asked) < 20


@pytest.mark.parametrize("name", ["a?b", "a/b", "a#b", "ä b"])
def test_a_name_is_a_name_whatever_is_in_it(name):
    asked = []

    def answer(request):
        asked.append(request.url)
        return httpx.Response(200, json={})

    with Client() as client:
        client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer))
        client.get_adapter(name)
        with pytest.raises(ClientError, match="'' names nothing"):
            client.get_job("")
    (url,) = asked
    assert (url.path, url.query) == (f"/v1/adapters/{name}", b"")
    assert url.raw_path.count(b"/") == 3


STRANGE_ENDS = "a\u2028b\x85c\u2029d\x1ce\r\nf"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_streamed_text_may_hold_what_unicode_ends_lines_with(size):
    told = [{"delta": STRANGE_ENDS}, {"text": STRANGE_ENDS, "done": True}]
    sent = "".join(f"data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in told).encode()
    pieces = [sent[i : i + size] for i in range(0, len(sent), size)]
    client, _ = client_of([httpx.Response(200, content=iter(pieces))])
    assert list(client.predict_stream("x", "a")) == told


def test_so_may_an_event_of_a_job():
    body = json.dumps({"message": STRANGE_ENDS}, ensure_ascii=False)
    client, _ = follower_of([httpx.Response(200, text=f"id: 1\ndata: {body}\n\ndata: [DONE]\n\n")])
    assert list(client.job_events("job")) == [{"message": STRANGE_ENDS}]


@pytest.mark.parametrize("error", [{"message": "no upstream"}, {}, "no upstream", None])
def test_an_error_in_another_form_than_the_servers_is_told_as_it_is(error):
    client, _ = client_of([httpx.Response(502, json={"error": error})])
    with pytest.raises(ClientError, match="HTTP 502") as caught:
        client.predict("x", "a")
    assert caught.value.code == "unavailable"
    client, _ = client_of([events({"error": error or {}})])
    with pytest.raises(ClientError) as caught:
        list(client.predict_stream("x", "a"))
    assert caught.value.code == "http_error"
