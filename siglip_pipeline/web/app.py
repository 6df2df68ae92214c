"""The application: routes, errors and the guard put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from siglip_pipeline import __version__
from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.search import QueryEmbedder
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.web import (
    api,
    clip_routes,
    evaluation_routes,
    explain_routes,
    export_routes,
    health,
    media,
    pages,
    sign_in,
    watch_routes,
)
from siglip_pipeline.web import (
    static_files as assets,
)
from siglip_pipeline.web import (
    video_routes as videos,
)
from siglip_pipeline.web.delivery import Compressed, HeadAsGet
from siglip_pipeline.web.guard import GUARD_ANSWERS, OPEN_PATHS, Guard
from siglip_pipeline.web.http_errors import http_error
from siglip_pipeline.web.keys import ApiKey
from siglip_pipeline.web.mcp_mount import McpMount
from siglip_pipeline.web.schemas import EmbedBody
from siglip_pipeline.web.services import Services
from siglip_pipeline.web.signatures import MediaSignatures

_DESCRIPTION = """Find moments in videos by text, by picture, or by another moment.

Every failure is answered with `{"error": {"type", "message"}}`. With `SIGLIP_API_KEY` set, requests
bring the key as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""


def _all_routes() -> list[BaseRoute]:
    """Return what all applications of a process share.

    FastAPI derives the types of a router's routes with the first request after its inclusion, which
    takes a third of a second.
    """
    together = APIRouter(generate_unique_id_function=lambda route: route.name)
    for module in (
        api,
        explain_routes,
        videos,
        watch_routes,
        evaluation_routes,
        media,
        clip_routes,
        health,
        pages,
        export_routes,
        sign_in,
        assets,
    ):
        together.include_router(module.router)
    return together.routes


_ROUTES = _all_routes()
_ERRORS = (
    SiglipPipelineError,
    HTTPException,
    RequestValidationError,
    ClientDisconnect,
    Exception,
)


def create_app(
    settings: Settings, database: Database, *, embedder: QueryEmbedder | None = None
) -> Guard:
    """Return the service as an ASGI application; it loads nothing until a request needs it.

    Args:
        settings: limits, the key, where uploads and frames are.
        database: an open one; the service only reads.
        embedder: instead of the default, which batches the texts of concurrent requests.
    """
    services = Services.open(settings, database, embedder)
    mcp = McpMount(services)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if settings.load_model_at_start:
            services.load_model_in_background()
        async with mcp.running():
            yield
        services.close()

    # FastAPI's own /docs loads scripts from another host; pages.py has one that does not.
    app = FastAPI(
        title="siglip-pipeline",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Compressed)
    app.add_middleware(HeadAsGet)
    app.state.services = services
    app.state.signatures = signatures = MediaSignatures(settings.api_key)
    app.state.api_key = ApiKey(settings.api_key)
    app.router.routes += [*_ROUTES, mcp.route()]
    for kind in _ERRORS:
        app.add_exception_handler(kind, _answer_error)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Guard(app, settings, signatures)


async def _answer_error(request: Request, error: Exception) -> Response:
    answer = http_error(error, request)
    accepts = request.headers.get("accept", "")
    is_page = not request.url.path.startswith(("/api/", "/static/"))
    if is_page and "text/html" in accepts:
        return pages.error_page(answer, request)
    return answer.response()


def _openapi(app: FastAPI) -> dict[str, object]:
    """Return the schema, with our form of errors instead of FastAPI's."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schema["servers"] = [{"url": "/"}]
        components = schema["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        components["schemas"]["EmbedBody"] = EmbedBody.model_json_schema()
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema["security"] = [{}, {"bearer": []}, {"key": []}]
        reference = {"$ref": "#/components/schemas/ErrorAnswer"}
        for address, path in schema["paths"].items():
            for operation in path.values():
                for status, description in GUARD_ANSWERS.items():
                    if status != 401 or address not in OPEN_PATHS:
                        operation["responses"].setdefault(
                            str(status),
                            {
                                "description": description,
                                "content": {"application/json": {"schema": reference}},
                            },
                        )
                invalid = operation["responses"].get("422")
                if invalid is not None:
                    invalid["content"] = {"application/json": {"schema": reference}}
        app.openapi_schema = schema
    return app.openapi_schema
