"""One server over HTTP: what is asked, and which kinds of failure there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2

from keel.errors import UserError, first_line

_CONNECT = 10.0  # seconds until a server must have taken the connection
_SHOWN = 200  # characters of a server's own words in a sentence


class Failed(Exception):
    """The server did not do it this time: another one may, or the same one later."""


class Stale(Failed):
    """It answered in a state that it should not have been in: the answer that it remembers is of no use."""


class Busy(Failed):
    """The server asks for `rest` seconds of peace."""

    def __init__(self, rest: float) -> None:
        super().__init__("it is busy (HTTP 429)")
        self.rest = rest


class Refused(UserError):
    """The server will never do it: the request itself is wrong for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Call:
    """A request that any of several servers may answer; `id` stays the same however often it is sent."""

    path: str
    body: Mapping[str, Any]
    id: str = field(default_factory=lambda: uuid4().hex)


class Server:
    """How to reach one server. May be used by several threads at once."""

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 600.0, connections: int = 1) -> None:
        self.url = url
        self.timeout = timeout
        self._client = httpx2.Client(
            base_url=url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(timeout, connect=min(_CONNECT, timeout)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises as `post` does."""
        return self._send("GET", path)

    def post(self, call: Call) -> Any:
        """The JSON that the server answers.

        Raises Failed for whatever may pass (no connection, no answer in time, an error of the server's own), Busy
        where it says so, and Refused for what it will never do.
        """
        return self._send("POST", call.path, json=dict(call.body), headers={"X-Request-Id": call.id})

    def require_alive(self) -> None:
        """Raises Failed where it does not say within seconds that it is up: a request might hang much longer."""
        response = self._request("GET", "/health", timeout=min(_CONNECT, self.timeout))
        if response.status_code >= 500:  # another server than ours may have no such path
            raise Failed(f"HTTP {response.status_code}: {_said(response)}")

    def close(self) -> None:
        self._client.close()

    def _request(self, method: str, path: str, **content: Any) -> httpx2.Response:
        try:
            return self._client.request(method, path, **content)
        except httpx2.TimeoutException as error:
            raise Failed(f"no answer in time ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            raise Failed(f"{type(error).__name__}: {first_line(error)}") from None

    def _send(self, method: str, path: str, **content: Any) -> Any:
        response = self._request(method, path, **content)
        rest = _retry_after(response.headers.get("Retry-After"), self.timeout)
        if response.status_code == 429 or (response.status_code == 503 and rest is not None):
            raise Busy(1.0 if rest is None else rest)
        if response.status_code >= 500:
            raise Failed(f"HTTP {response.status_code}: {_said(response)}")
        if not response.is_success:
            status = response.status_code
            raise Refused(f"the server {self.url} refuses {method} {path} (HTTP {status}: {_said(response)})", status)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise Failed("its answer is no JSON") from None


def token_from(variable: str | None, key: str) -> str | None:
    """The secret in that environment variable. Raises UserError, naming the recipe's `key`, where it is not set."""
    if variable is None:
        return None
    token = os.environ.get(variable)
    if not token:
        raise UserError(f"{key} names the environment variable {variable}, which is not set; export it first")
    return token


def _retry_after(header: str | None, longest: float) -> float | None:
    """Seconds; None where the header is missing or a date."""
    try:
        return None if header is None else min(max(float(header), 0.0), longest)
    except ValueError:
        return None


def _said(response: httpx2.Response) -> str:
    """The server's own words: of an error in OpenAI's shape its message."""
    try:
        content = response.json()
        message = content["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text
    return " ".join(str(message).split())[:_SHOWN] or "without a word"
