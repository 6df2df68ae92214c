"""`siglip-pipeline serve`: the application in a server of its own."""

import socket
from collections.abc import Callable

from siglip_pipeline.errors import LaunchError
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import open_database
from siglip_pipeline.web.binding import check_exposure, url_host

_STOP_SECONDS = 2
_BACKLOG = 512


def serve(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Answer requests until SIGINT or SIGTERM.

    An external database is only read: a role that may do no more is enough. The embedded one is
    started when needed and its schema brought up to date.

    Args:
        settings: ``host``, ``page_port``, the key and the limits.
        ready: called with the address, once it can be connected to.

    Raises:
        LaunchError: the port is taken, or a key is needed for this address.
        StoreError: the database cannot be used.
    """
    # A second to import, and only this command needs them.
    import uvicorn

    from siglip_pipeline.web.app import create_app

    check_exposure(settings)
    with (
        _listen(settings.host, settings.page_port) as listener,
        open_database(settings, schema="check" if settings.database_url else "migrate") as database,
    ):
        config = uvicorn.Config(
            create_app(settings, database),
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # The guard looks at them, where SIGLIP_TRUSTED_PROXIES names the proxy.
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        ready(f"http://{url_host(settings.host)}:{settings.page_port}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise LaunchError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port "
            "or SIGLIP_PAGE_PORT"
        ) from error
    return listener
