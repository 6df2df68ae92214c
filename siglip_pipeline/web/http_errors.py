"""Errors over HTTP: one JSON shape, ``{"error": {"type", "message"}}``, for every failure.

Only messages about the request are sent to clients: those of the database and of storage name hosts
and folders, and go to the log.
"""

import logging
from collections.abc import Mapping

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from siglip_pipeline.errors import (
    FrameStoreError,
    ModelError,
    NothingIndexedError,
    QueryError,
    SiglipPipelineError,
    UploadNotFoundError,
    VideoError,
    WatchNotFoundError,
)

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5

_TYPES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    413: "ContentTooLarge",
    414: "AddressTooLong",
    415: "UnsupportedMediaType",
    416: "RangeNotSatisfiable",
    422: "ValidationError",
    429: "TooManyRequests",
    431: "HeadersTooLarge",
    500: "InternalError",
    503: "Unavailable",
}


class HttpError(HTTPException):
    """A request that is answered with an error: its status says which.

    Args:
        status: HTTP status, 400 or more.
        message: a sentence for the caller: the value, what is allowed, the remedy.
        kind: the ``type`` of the answer; None: after the status.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.kind = kind or _TYPES.get(status, f"Http{status}")
        self.message = message

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        return JSONResponse(
            {"error": {"type": self.kind, "message": self.message}},
            status_code=self.status_code,
            headers=dict(self.headers or {}),
        )


def unavailable(reason: str, *, kind: str | None = None) -> HttpError:
    """Return a 503 that says why, and when to try again."""
    return HttpError(
        503,
        f"{reason}; try again in {RETRY_SECONDS} s",
        kind=kind,
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def busy(what: str) -> HttpError:
    """Return a 503: too many of something at once."""
    return unavailable(f"too many {what}")


def http_error(error: Exception, request: Request) -> HttpError:
    """Return the error that a client sees; log what it must not see."""
    match error:
        case HttpError():
            return error
        case HTTPException():
            message = {
                404: f"there is nothing at {request.url.path}; /openapi.json lists what there is",
                405: f"{request.method} is not allowed at {request.url.path}",
            }.get(error.status_code, str(error.detail))
            return HttpError(error.status_code, message, headers=error.headers)
        case RequestValidationError():
            return HttpError(422, "; ".join(_problem(dict(e)) for e in error.errors()))
        case ClientDisconnect():
            return HttpError(400, "the connection was closed before the request was complete")
        case SiglipPipelineError():
            return public_error(error, f"{request.method} {request.url.path}")
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return HttpError(500, "the request failed; the service's log says more")


def public_error(error: Exception, where: str) -> HttpError:
    """Return what a client sees of an error of ours; log what it must not see.

    Args:
        error: an :class:`HttpError` is returned as it is.
        where: what was requested, for the log.
    """
    match error:
        case HttpError():
            return error
        case QueryError():
            return HttpError(400, str(error), kind="QueryError")
        case WatchNotFoundError():
            return HttpError(404, str(error), kind="WatchNotFoundError")
        case NothingIndexedError():
            return HttpError(
                409,
                "nothing is indexed yet: put videos into the uploads and wait for the index",
                kind="NothingIndexedError",
            )
        case UploadNotFoundError():
            logger.info("%s: %s", where, error)
            return HttpError(
                404, "the video's file is no longer among the uploads", kind="UploadNotFoundError"
            )
        case VideoError():
            return HttpError(422, str(error), kind="VideoError")
        case FrameStoreError():
            logger.warning("%s: %s", where, error)
            return HttpError(404, "this picture is not stored, or cannot be read")
    logger.error("%s: %s: %s", where, type(error).__name__, error)
    kind = type(error).__name__
    if isinstance(error, SiglipPipelineError) and error.retryable:
        return unavailable("the database or the storage does not answer", kind=kind)
    if isinstance(error, ModelError):
        return HttpError(500, "the model cannot be used; the service's log says why", kind=kind)
    return HttpError(500, "the request failed; the service's log says why", kind=kind)


def _problem(error: dict[str, object]) -> str:
    """Return one line about one parameter."""
    location = error["loc"]
    parts = location if isinstance(location, list | tuple) else (location,)
    name = ".".join(str(part) for part in parts[1:]) or str(parts[0])
    value = error.get("input")
    shown = "" if value is None else f"={str(value)[:80]!r}"
    return f"{name}{shown}: {error['msg']}"
