"""`/mcp` in `serve`: a server that begins with its first request.

Its SDK takes 0.6 s to import, which every `serve` would wait for.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from siglip_pipeline.web.services import Services

if TYPE_CHECKING:
    from mcp.server import MCPServer

PATH: Final = "/mcp"


class McpMount:
    """The ASGI application at `/mcp`.

    Args:
        services: what its tools use.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._app: ASGIApp | None = None

    def route(self) -> Route:
        """Return the route of the application."""
        return Route(PATH, self)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests within this context."""
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; start the server for the first one."""
        async with self._lock:
            if self._app is None:
                assert self._tasks is not None, "requests come while it is running"
                self._app = await self._tasks.start(self._run)
        await self._app(scope, receive, send)

    async def _run(self, *, task_status: TaskStatus[ASGIApp]) -> None:
        """Run the server in one task: its sessions begin and end there."""
        server, app = await run_in_threadpool(self._open)
        async with server.session_manager.run():
            task_status.started(app)
            await anyio.sleep_forever()

    def _open(self) -> "tuple[MCPServer[Any], ASGIApp]":
        from siglip_pipeline.web.mcp_server import create_mcp, mcp_app

        server = create_mcp(self._services)
        return server, mcp_app(server)
