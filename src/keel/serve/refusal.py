"""A request that gets no answer, and why."""

from __future__ import annotations

from typing import Any

from keel.errors import UserError


class Refusal(Exception):
    """An HTTP status with one sentence; `param` is the key to blame, `code` a word for programs."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after  # seconds

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(str(error))
    return Refusal(f"the server failed: {type(error).__name__}; its terminal says more", status=500)
