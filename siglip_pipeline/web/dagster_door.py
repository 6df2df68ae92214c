"""Access control for Dagster's webserver, which has none: keys, hosts and origins."""

from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from siglip_pipeline.settings import Settings
from siglip_pipeline.web import sign_in
from siglip_pipeline.web import static_files as assets
from siglip_pipeline.web.guard import OPEN_PREFIX, Guard
from siglip_pipeline.web.http_errors import HttpError, http_error
from siglip_pipeline.web.keys import ApiKey
from siglip_pipeline.web.origin import check_same_site

_GRAPHQL: Final = "/graphql"
_HEADERS: Final = [
    # In addition to the policy of Dagster's pages. Its UI shows notebooks in frames.
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class DagsterDoor:
    """ASGI middleware around Dagster's webserver, for its pages, GraphQL and websockets.

    Refuses with a JSON error: requests from pages of other sites, and hosts other than loopback
    while there is no key (403, see :func:`check_same_site`); GraphQL that holds more than queries
    and is not posted (405). With a key, requests without it get the sign-in page or a 401.

    Args:
        dagster: the webserver's application.
        settings: the key, and how often one may be tried.
    """

    def __init__(self, dagster: ASGIApp, settings: Settings) -> None:
        self._dagster = dagster
        self._key = ApiKey(settings.api_key)
        self._sign_in = Guard(_sign_in_app(self._key), settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or websocket, or pass it on."""
        if scope["type"] == "lifespan":
            await self._dagster(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        try:
            self._check(scope)
        except HttpError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        if self._is_for_sign_in(scope):
            await self._sign_in(scope, receive, send)
        else:
            await self._dagster(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        foreign = check_same_site(scope, any_host=self._key.is_set, is_page=_is_page)
        if foreign is not None:
            raise HttpError(403, foreign)
        if scope["path"] == _GRAPHQL and scope.get("method", "POST") != "POST":
            query = QueryParams(scope["query_string"]).get("query", "")
            if query and not _only_reads(query):
                raise HttpError(
                    405,
                    "only GraphQL queries are answered by GET, and everything else has to be "
                    "posted: an address that changes something could be opened by any page",
                    headers={"Allow": "POST"},
                )

    def _is_for_sign_in(self, scope: Scope) -> bool:
        if not self._key.is_set:
            return False
        path: str = scope["path"]
        own = path == sign_in.LOGIN_PATH or path.startswith(OPEN_PREFIX)
        return own or not self._key.lets_in(Headers(scope=scope))


def _is_page(path: str) -> bool:
    return path != _GRAPHQL


def _only_reads(query: str) -> bool:
    """Return whether a GraphQL document holds nothing but queries.

    A document that fails to parse here counts as more: the nesting limit depends on the stack, so
    Dagster may still parse it.
    """
    try:
        document = parse(query)
    except (GraphQLError, RecursionError):
        return False
    return all(
        not isinstance(definition, OperationDefinitionNode)
        or definition.operation == OperationType.QUERY
        for definition in document.definitions
    )


def _sign_in_app(key: ApiKey) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.api_key = key
    app.include_router(sign_in.router)
    app.include_router(assets.router)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    return http_error(error, request).response()
