"""A client for Headstock's native routes. It needs httpx and nothing of ours: an application may take this one file."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import httpx

KEY_VARIABLE = "HEADSTOCK_API_KEY"
# What a load balancer sends an adapter's calls to one replica by.
ROUTING_HEADER = "X-Headstock-Adapter"
_JOBS = "/v1/fine_tuning/jobs"
_AWAY = ("unreachable", "timeout", "unavailable")  # errors of a server that starts again
TRY_AGAIN = (429, 503)  # the server did nothing, and says in Retry-After when it may
BAD_GATEWAY = 502  # a proxy's word for a server that is not there, or went while it worked
MAX_RETRY_SECONDS = 30.0
RECONNECT_SECONDS = 0.2
RESTART_SECONDS = 60.0  # that a server may be away before events are no longer waited for
GRACE_SECONDS = 10.0  # for a server to say that a call's time is over
# Of a folder without a manifest; a head among them is sent, for the server to refuse rather than for us to lose.
STOCK_FILES = {f"{name}.safetensors" for name in ("adapter_model", "head")}
STOCK_FILES |= {"adapter_config.json", "README.md"}


class ClientError(Exception):
    """The server refused a call, or could not be reached.

    Args:
        status: the HTTP status; 0 if there was no answer.
        code, message, param: the server's error, as it words it.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class Client:
    """Talks to one server.

    Args:
        url: where it listens, such as ``http://127.0.0.1:8000``.
        timeout_seconds: how long to wait for an answer, or for the next piece of one that streams; longer for a
            prediction that is given more time.
        retries: how often to send a call again that a full or restarting server refused (429, 503), after the
            time in its ``Retry-After``, 30 seconds at most; predictions, which change nothing, also if the connection
            broke off, or a proxy's did (502).
        api_key: for servers that ask for one; ``HEADSTOCK_API_KEY``, if it is not given.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout_seconds: float = 120.0,
        *,
        retries: int = 0,
        api_key: str | None = None,
    ) -> None:
        key = api_key or os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        _check_url(url)
        self._http = httpx.Client(base_url=url, timeout=timeout_seconds, headers=headers)
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(
        self, adapter: str, inputs: Any, *, timeout_seconds: float | None = None, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Return the answers of one adapter, in the inputs' order; a row that failed holds ``error``.

        Args:
            timeout_seconds: what the server may take; the rest of the rows then end with an error.

        Raises:
            ClientError: the call was refused, or all of its rows failed; the error is then the first row's.
        """
        body = {"adapter": adapter, "inputs": inputs, "parameters": parameters}
        return self._predict(body, timeout_seconds)

    def predict_many(
        self, requests: list[dict[str, Any]], *, timeout_seconds: float | None = None
    ) -> list[dict[str, Any]]:
        """Answer requests for many adapters, each ``{"adapter", "input", "parameters"?}``, in order.

        Raises:
            ClientError: as `predict`.
        """
        return self._predict({"requests": requests}, timeout_seconds)

    def predict_stream(
        self, adapter: str, given: Any, *, timeout_seconds: float | None = None, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield a generated answer as it is made: ``{"delta": text}`` each, then the whole one with ``"done": true``.

        Raises:
            ClientError: the call was refused, or the answer broke off.
        """
        body = {"adapter": adapter, "inputs": [given], "parameters": parameters, "stream": True}
        body = _with_timeout(body, timeout_seconds)
        options = {"json": body, "headers": _route(adapter), **self._patience(timeout_seconds)}
        with self._stream("POST", "/v1/predict", is_safe=True, **options) as response:
            yield from _events(response)

    def list_adapters(self) -> list[dict[str, Any]]:
        """Return all adapters, which the server lists in pages."""
        adapters: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            after = adapters[-1]["name"] if adapters else ""
            page = self._call("GET", "/v1/adapters", params={"after": after})
            adapters += page["adapters"]
            has_more = page["has_more"]
        return adapters

    def get_adapter(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/adapters/{_quoted(name)}")

    def get_version(self, name: str, number: int) -> dict[str, Any]:
        """Return a version with its ``manifest``."""
        return self._call("GET", f"/v1/adapters/{_quoted(name)}/versions/{number}")

    def create_version(self, name: str, bundle: Path | str) -> dict[str, Any]:
        """Send a bundle's folder, or a stock PEFT one, as the next version of an adapter, and return the version."""
        buffer = io.BytesIO()
        is_stock = not (Path(bundle) / "manifest.json").exists()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(Path(bundle).iterdir()):
                if not is_stock or path.name in STOCK_FILES:  # beside a tokenizer and so on
                    tar.add(path, arcname=path.name)
        headers = {"Content-Type": "application/x-tar"}
        given = {"params": {"name": name}, "content": buffer.getvalue(), "headers": headers}
        return self._call("POST", "/v1/adapters", **given)

    def set_alias(
        self, name: str, alias: str, version: int, *, if_revision: int | None = None
    ) -> dict[str, Any]:
        """Point an alias at a version, if it is still at ``if_revision`` where that is given."""
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
        return self._call(
            "PUT",
            f"/v1/adapters/{_quoted(name)}/aliases/{_quoted(alias)}",
            json={"version": version},
            headers=headers,
        )

    def create_file(self, path: Path | str) -> dict[str, Any]:
        """Send a file of examples, and return its record; a bad line refuses it."""
        with Path(path).open("rb") as file:
            return self._call(
                "POST",
                "/v1/files",
                data={"purpose": "fine-tune"},
                files={"file": (Path(path).name, file)},
            )

    def create_job(
        self, order: dict[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Order an adapter: ``{"model", "training_file", …}``; the same key gives the same job."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._call("POST", _JOBS, json=order, headers=headers)

    def get_job(self, job: str) -> dict[str, Any]:
        return self._call("GET", f"{_JOBS}/{_quoted(job)}")

    def list_jobs(self, limit: int = 20) -> list[dict[str, Any]]:
        """Return the newest jobs, newest first."""
        answer = self._call("GET", _JOBS, params={"limit": limit})
        jobs: list[dict[str, Any]] = answer["data"]
        return jobs

    def change_job(self, job: str, how: Literal["cancel", "pause", "resume"]) -> dict[str, Any]:
        return self._call("POST", f"{_JOBS}/{_quoted(job)}/{how}")

    def job_events(self, job: str, *, follow: bool = False) -> Iterator[dict[str, Any]]:
        """Yield a job's events, oldest first; with ``follow``, those to come too, until it has ended.

        A connection that breaks off is made again, from the event after the last, for as long as a server takes to
        start again.

        Raises:
            ClientError: there is no such job, no server answers, or it has been away for `RESTART_SECONDS`.
        """
        path = f"{_JOBS}/{_quoted(job)}/events"
        last, next_number, is_known, away_since = 0, 0, False, 0.0
        while True:
            options = {"params": {"stream": "true"}, "headers": {"Last-Event-ID": str(last)}}
            try:
                with self._stream("GET", path, **options) as response:
                    is_known, away_since = True, 0.0
                    for line in _lines(response):
                        if line == "data: [DONE]" or (not follow and line.startswith(":")):
                            return
                        if line.startswith("id: "):
                            next_number = int(line.removeprefix("id: "))
                        elif line.startswith("data: "):
                            last = next_number
                            yield json.loads(line.removeprefix("data: "))
            except ClientError as error:
                away_since = away_since or time.monotonic()
                is_late = time.monotonic() - away_since > RESTART_SECONDS
                if not is_known or is_late or error.code not in _AWAY:
                    raise
            time.sleep(RECONNECT_SECONDS)

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        return self._call("GET", "/v1/stats")

    def is_healthy(self) -> bool:
        """Tell whether the server is up and its engine ready."""
        try:
            return self._http.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _predict(self, body: dict[str, Any], timeout_seconds: float | None) -> list[dict[str, Any]]:
        name = body.get("adapter") or [*body.get("requests", []), {}][0].get("adapter", "")
        body = _with_timeout(body, timeout_seconds)
        options = {"json": body, "headers": _route(str(name)), **self._patience(timeout_seconds)}
        answer = self._call("POST", "/v1/predict", is_safe=True, **options)
        predictions: list[dict[str, Any]] = answer["predictions"]
        return predictions

    def _patience(self, timeout_seconds: float | None) -> dict[str, Any]:
        """Return the option to wait as long as the server may take for a prediction, where that is not done anyway."""
        usual = self._http.timeout
        longest = (timeout_seconds or 0.0) + GRACE_SECONDS
        if timeout_seconds is None or usual.read is None or usual.read >= longest:
            return {}
        return {"timeout": httpx.Timeout(**{**usual.as_dict(), "read": longest})}

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return _body(self._send(method, path, **options))

    def _send(
        self,
        method: str,
        path: str,
        *,
        stream: bool = False,
        is_safe: bool = False,
        **options: Any,
    ) -> httpx.Response:
        """Return the response, the last one if the server refused every try.

        Args:
            is_safe: it may be sent again, though nobody knows whether it was carried out.
        """
        refusals = (*TRY_AGAIN, BAD_GATEWAY) if is_safe else TRY_AGAIN
        for tries_left in range(self._retries, -1, -1):
            try:
                request = self._http.build_request(method, path, **options)
                response = self._http.send(request, stream=stream)
            except httpx.TransportError as error:
                if not (is_safe and tries_left) or isinstance(error, httpx.ReadTimeout):
                    raise self._unreachable(error) from error
                time.sleep(RECONNECT_SECONDS)
                continue
            if response.status_code not in refusals or not tries_left:
                break
            response.close()
            time.sleep(_retry_seconds(response))
        return response

    @contextlib.contextmanager
    def _stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Give a response whose body is read as it comes.

        Raises:
            ClientError: the call was refused, or the connection broke off while it was read.
        """
        response = self._send(method, path, stream=True, **options)
        try:
            if not response.is_success:
                response.read()
                _body(response)
            yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            response.close()

    def _unreachable(self, error: httpx.TransportError) -> ClientError:
        if isinstance(error, httpx.ReadTimeout):
            seconds = error.request.extensions["timeout"]["read"]
            return ClientError(
                0,
                "timeout",
                f"The server at {self._http.base_url} said nothing for '{seconds:g}' seconds; it may still be at "
                "work. Wait longer (timeout_seconds), or send less in one call.",
            )
        return ClientError(
            0,
            "unreachable",
            f"No server answers at {self._http.base_url} ({type(error).__name__}). Start one with "
            "'headstock serve'.",
        )


def _quoted(name: str) -> str:
    """Return a name or an id as a part of a path."""
    if not name:
        raise ClientError(0, "invalid_request", "'' names nothing. Give a name or an id.")
    return quote(name, safe="")


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
        is_whole = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx.InvalidURL:
        is_whole = False
    if not is_whole:
        said = f"'{url}' is not the address of a server. Write one such as http://127.0.0.1:8000."
        raise ClientError(0, "invalid_url", said)


def _route(adapter: str) -> dict[str, str]:
    """Return the header that keeps an adapter's calls together, whatever version or alias they name."""
    name = adapter.partition("@")[0].partition(":")[0]
    return {ROUTING_HEADER: name} if name.isascii() and name.isprintable() else {}


def _with_timeout(body: dict[str, Any], timeout_seconds: float | None) -> dict[str, Any]:
    return body if timeout_seconds is None else {**body, "timeout_seconds": timeout_seconds}


def _retry_seconds(response: httpx.Response) -> float:
    """Return how long the server asks to wait; a second if it does not say in seconds."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), MAX_RETRY_SECONDS) if asked.isdecimal() else 1.0


def _lines(response: httpx.Response) -> Iterator[str]:
    """Yield the lines of a stream of events; httpx's own end at all that Unicode knows as a line's end, as in texts."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in _lines(response):
        if not line.startswith("data: "):
            continue
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise _error(response.status_code, event["error"], line)
        yield event
        if event.get("done"):
            return
    raise ClientError(response.status_code, "broken_off", "The answer broke off before its end.")


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    raise _error(response.status_code, error, response.text)


def _error(status: int, error: Any, said: str) -> ClientError:
    """Return an error in the server's words, or in ours for what something between it and us said."""
    if isinstance(error, dict) and {"code", "message"} <= error.keys():
        return ClientError(status, error["code"], error["message"], error.get("param"))
    code = "unavailable" if status == BAD_GATEWAY else "http_error"
    return ClientError(status, code, f"HTTP {status}: {said[:200]}")
