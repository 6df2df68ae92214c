"""`siglip-pipeline serve`: the application in a server of its own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from siglip_pipeline.services.binding import check_exposure
from siglip_pipeline.services.ports import listen
from siglip_pipeline.services.serving import announced_service
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.text.url_host import url_host

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_STOP_SECONDS = 2


def serve(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Answer requests until SIGINT or SIGTERM.

    An external database is only read: a read-only role is enough. The embedded one is started if
    necessary and its schema migrated.

    Args:
        settings: ``host``, ``page_port``, the key and the limits.
        ready: called with the address, once it can be connected to.

    Raises:
        LaunchError: the port is taken, or a key is needed for this address.
        StoreError: the database cannot be used.
    """
    check_exposure(settings)
    # Takes a second to import, and only this command needs it.
    from siglip_pipeline.web.app import create_app

    with (
        listen(settings.host, settings.page_port, option="--port or SIGLIP_PAGE_PORT") as listener,
        open_database(
            DatabaseOptions.from_settings(settings),
            schema="check" if settings.database_url else "migrate",
        ) as database,
    ):
        server = http_server(settings, create_app(settings, database))
        url = f"http://{url_host(settings.host)}:{settings.page_port}"
        with announced_service(settings, url):
            ready(url)
            server.run(sockets=[listener])


def serve_mcp(settings: Settings) -> None:
    """Answer the Model Context Protocol on stdin and stdout until stdin ends.

    Raises:
        StoreError: the database cannot be used.
    """
    from siglip_pipeline.web.mcp_server import create_mcp
    from siglip_pipeline.web.services import Services

    with open_database(
        DatabaseOptions.from_settings(settings),
        schema="check" if settings.database_url else "migrate",
    ) as database:
        services = Services.open(settings, database)
        try:
            create_mcp(services).run("stdio")
        finally:
            services.close()


def http_server(
    settings: Settings, app: "ASGIApp", *, websockets: bool = False
) -> "uvicorn.Server":
    """Return the server of an application, with the limits that the settings ask for."""
    import uvicorn

    from siglip_pipeline.web.connections import ConnectionLimits, Connections

    connections = Connections(ConnectionLimits.from_settings(settings))
    config = uvicorn.Config(
        app,
        # uvicorn calls it like the protocol class.
        http=connections.protocol,  # type: ignore[arg-type]
        ws="auto" if websockets else "none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # The guard reads these headers if SIGLIP_TRUSTED_PROXIES names the proxy.
        proxy_headers=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    return uvicorn.Server(config)
