"""Dagster's webserver in a server of our own, behind :class:`DagsterDoor`."""

from pathlib import Path

from siglip_pipeline.services.binding import check_exposure
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.services.ports import listen
from siglip_pipeline.settings import Settings
from siglip_pipeline.web.serve import http_server


def serve_dagster(settings: Settings, workspace: Path) -> None:
    """Serve Dagster's UI and GraphQL until SIGINT or SIGTERM, as ``DAGSTER_HOME`` says.

    Args:
        settings: ``dagster_host``, ``dagster_port`` and the key.
        workspace: file that names the code locations.

    Raises:
        LaunchError: the port is taken, or a key is needed for this address.
        DatabaseUnavailableError: there is no connection to Dagster's storage.
    """
    check_exposure(settings)
    # Seconds to import, and only this command needs them.
    from siglip_pipeline.defs.internals import webserver_app
    from siglip_pipeline.web.dagster_door import DagsterDoor

    option = "--port or SIGLIP_DAGSTER_PORT"
    with (
        listen(settings.dagster_host, settings.dagster_port, option=option) as listener,
        open_instance(settings) as instance,
        webserver_app(instance, workspace) as dagster,
    ):
        server = http_server(settings, DagsterDoor(dagster, settings), websockets=True)
        server.run(sockets=[listener])
