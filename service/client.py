"""A client for Headstock's native routes. It needs httpx and nothing of ours: an application may take this one file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx


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
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_seconds: float = 120.0) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_seconds)

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

    def predict(self, adapter: str, inputs: Any, **parameters: Any) -> list[dict[str, Any]]:
        """Return the answers of one adapter, in the inputs' order; a row that failed holds ``error``."""
        body = {"adapter": adapter, "inputs": inputs, "parameters": parameters}
        predictions: list[dict[str, Any]] = self._call("POST", "/v1/predict", json=body)[
            "predictions"
        ]
        return predictions

    def predict_many(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests for many adapters, each ``{"adapter", "input", "parameters"?}``, in order."""
        predictions: list[dict[str, Any]] = self._call(
            "POST", "/v1/predict", json={"requests": requests}
        )["predictions"]
        return predictions

    def list_adapters(self) -> list[dict[str, Any]]:
        adapters: list[dict[str, Any]] = self._call("GET", "/v1/adapters")["adapters"]
        return adapters

    def get_adapter(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/adapters/{name}")

    def create_version(self, name: str, bundle: Path | str) -> dict[str, Any]:
        """Send a bundle's folder as the next version of an adapter, and return the version."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(Path(bundle).iterdir()):
                tar.add(path, arcname=path.name)
        headers = {"Content-Type": "application/x-tar"}
        return self._call(
            "POST",
            "/v1/adapters",
            params={"name": name},
            content=buffer.getvalue(),
            headers=headers,
        )

    def set_alias(
        self, name: str, alias: str, version: int, *, if_revision: int | None = None
    ) -> dict[str, Any]:
        """Point an alias at a version, if it is still at ``if_revision`` where that is given."""
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
        return self._call(
            "PUT",
            f"/v1/adapters/{name}/aliases/{alias}",
            json={"version": version},
            headers=headers,
        )

    def stats(self) -> dict[str, Any]:
        """Return the engine's counters."""
        return self._call("GET", "/v1/stats")

    def is_healthy(self) -> bool:
        """Tell whether the server is up and its engine ready."""
        try:
            return self._http.get("/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ClientError(
                0,
                "unreachable",
                f"No server answers at {self._http.base_url} ({type(error).__name__}). Start one with "
                "'headstock serve'.",
            ) from error
        return _body(response)


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.is_success and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        error = {
            "code": "http_error",
            "message": f"HTTP {response.status_code}: {response.text[:200]}",
        }
    raise ClientError(response.status_code, error["code"], error["message"], error.get("param"))
