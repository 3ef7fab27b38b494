"""A stream from a real server: the text as it is made, real errors before it, and a row freed when nobody reads."""

import json

import httpx
import pytest

from service.client import ClientError
from tests.servers import long_call, running_server, wait_until


def test_a_stream_goes_out_and_ends_with_what_a_plain_call_answers(
    tmp_path, decoder_folder, bundles
):
    home = tmp_path / "home"
    with running_server(home, str(decoder_folder), dtype="float32") as (client, _):
        for name in ("summary", "labels"):
            client.create_version(name, bundles / name)
        (plain,) = client.predict("summary", "The sun.", max_new_tokens=20)
        *deltas, last = client.predict_stream("summary", "The sun.", max_new_tokens=20)
        assert last == {**plain, "done": True}
        assert "".join(delta["delta"] for delta in deltas).strip() == plain["summary"]
        for adapter, status in (("labels", 400), ("none", 404)):
            with pytest.raises(ClientError) as caught:
                list(client.predict_stream(adapter, "x"))
            assert caught.value.status == status
        leave_a_stream(client)
        wait_until(lambda: not client.stats()["waiting_rows"])


def leave_a_stream(client):
    body = {**long_call(rows=1, tokens=200), "stream": True}
    with (
        httpx.Client(base_url=client._http.base_url, timeout=60) as http,
        http.stream("POST", "/v1/predict", json=body) as response,
    ):
        assert response.status_code == 200
        first = next(line for line in response.iter_lines() if line)
        assert "delta" in json.loads(first.removeprefix("data: "))
