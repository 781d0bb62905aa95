"""Every failure a person can meet: what happened, what to do, and one code for each door."""

from __future__ import annotations

from collections.abc import Sequence


class FreeholdError(Exception):
    """Something failed that we did not foresee. Base of the errors raised on purpose."""

    status = 500
    exit_code = 1
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self, message: str, *, hint: str = "", param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: Sequence[tuple[bytes, bytes]] = ()  # more of them, of the answer to a caller over HTTP


class BadConfig(FreeholdError):
    """`freehold.toml` is missing, unreadable or says something Freehold does not know."""

    exit_code = 2
    code = "bad_config"


class BadRequest(FreeholdError):
    """The request is not one an engine could answer."""

    status, exit_code, type, code = 400, 2, "invalid_request_error", None


class NotSupported(FreeholdError):
    """The engine behind the endpoint cannot do that."""

    status, exit_code, type, code = 400, 2, "invalid_request_error", "not_supported"


class BadKey(FreeholdError):
    """No key, or one that is unknown, expired or revoked."""

    status, exit_code, type, code = 401, 3, "invalid_request_error", "invalid_api_key"


class Forbidden(FreeholdError):
    """The key is good, but not for this."""

    status, exit_code, type, code = 403, 3, "invalid_request_error", "permission_denied"


class Unknown(FreeholdError):
    """A name that nothing here answers to."""

    status, exit_code, type, code = 404, 2, "invalid_request_error", "model_not_found"


class NotFound(FreeholdError):
    """A URL that is not one of ours."""

    status, exit_code, type, code = 404, 2, "invalid_request_error", "unknown_url"


class LimitHit(FreeholdError):
    """The key or its group has used up what it may use in a minute, or at the same time; `retry_after_s` says when."""

    status, exit_code, type, code = 429, 5, "rate_limit_error", "rate_limit_exceeded"


class OverBudget(FreeholdError):
    """What the key or its group may use in a day or a month would be passed."""

    status, exit_code, type, code = 429, 3, "insufficient_quota", "insufficient_quota"


class TooLarge(FreeholdError):
    """The request's body is larger than this server reads."""

    status, exit_code, type, code = 413, 2, "invalid_request_error", "request_too_large"


class Refused(FreeholdError):
    """The weights were refused by the gate, or policy says no."""

    status, exit_code, type, code = 403, 3, "invalid_request_error", "refused"


class DoesNotFit(FreeholdError):
    """The model does not fit this machine as asked; a context of `longest` tokens would, where that is known."""

    longest = 0
    status, exit_code, type, code = 422, 4, "invalid_request_error", "does_not_fit"


class NotReady(FreeholdError):
    """The engine is not ready in time, stopped, or failing; trying again later can help."""

    status, exit_code, code = 503, 5, "engine_unavailable"


class QueueFull(NotReady):
    """So many wait already that one more would not be served in time."""


class EngineFailed(FreeholdError):
    """The engine went away or answered nonsense in the middle of a request."""

    status, exit_code, code = 502, 5, "engine_failed"


class TimedOut(FreeholdError):
    """The whole request took longer than the endpoint allows."""

    status, exit_code, code = 504, 5, "timeout"


class HubFailed(FreeholdError):
    """The hub cannot be reached, is busy, or does not answer as a hub does; with `retry_after_s` it may later."""

    status, exit_code, code = 502, 5, "hub_failed"


class NoDaemon(FreeholdError):
    """The daemon is not running, or not reachable."""

    exit_code = 6
    code = "no_daemon"
