"""The queues, broker and result backend that carry steps between machines, as Celery takes them.

Runs and workers need the same configuration, so both read this module. It does not import Celery.
"""

from typing import Any, Final

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings
from siglip_pipeline.text.secret import SecretUrl

DEFAULT_QUEUE: Final = "dagster"
"""dagster-celery's default queue: steps that need no GPU, such as decoding."""
EMBEDDING_QUEUE: Final = "siglip"
"""Queue of steps that need the model, for machines with a GPU."""
QUEUE_TAG: Final = "dagster-celery/queue"
"""The op tag that selects the queue of a step. dagster-celery does not read asset tags."""

INSTALL: Final = "pip install 'siglip-pipeline[celery]'"

_RESULTS_KEPT_SECONDS: Final = 24 * 3600
# Wait ten minutes for a broker that is down; then the run fails, and Dagster retries it.
_AWAY_SECONDS: Final = 600
_PUBLISH_RETRIES: Final = 120
_PUBLISH_WAIT_SECONDS: Final = 5.0
_RETRY_POLICY: Final = {
    "max_retries": _PUBLISH_RETRIES,
    "interval_start": 0.2,
    "interval_step": 0.5,
    "interval_max": _PUBLISH_WAIT_SECONDS,
}
# A worker that waits for steps waits without this limit; it is for answers to what was sent.
_ANSWER_SECONDS: Final = 30


def is_redis(broker_url: SecretUrl) -> bool:
    """Return whether the broker is Redis, which returns messages after a timeout.

    RabbitMQ returns them when the worker's connection closes.
    """
    return broker_url.startswith(("redis://", "rediss://", "sentinel://"))


def broker_url(settings: Settings) -> SecretUrl:
    """Return the URL of the broker.

    Raises:
        SettingsError: ``SIGLIP_CELERY_BROKER_URL`` is not set.
    """
    if settings.celery_broker_url is None:
        raise SettingsError(
            "SIGLIP_CELERY_BROKER_URL is not set; workers and SIGLIP_EXECUTOR=celery need it, e.g. "
            "redis://redis:6379/0 or amqp://user:password@rabbitmq:5672//"
        )
    return settings.celery_broker_url


def backend_url(settings: Settings) -> SecretUrl:
    """Return the URL for results: as set, else of a Redis broker, else of Dagster's Postgres.

    Celery's own default, ``rpc://``, keeps results in queues that a broker's restart empties.

    Raises:
        SettingsError: none of these is set.
    """
    if settings.celery_backend_url is not None:
        return settings.celery_backend_url
    broker = broker_url(settings)
    if is_redis(broker):
        return broker
    if settings.dagster_postgres_url is None:
        raise SettingsError(
            "SIGLIP_CELERY_BACKEND_URL is not set; beside RabbitMQ it is DAGSTER_POSTGRES_URL "
            "unless set, and that is not set either"
        )
    return SecretUrl(f"db+{settings.dagster_postgres_url.reveal()}")


def celery_config(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration, for runs that send steps and workers that execute them.

    https://docs.celeryq.dev/en/stable/userguide/configuration.html describes each name.

    Raises:
        SettingsError: as :func:`broker_url`.
    """
    return {
        # Acknowledge a step when it is done: if the worker dies, the broker delivers it again.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # Runs and workers wait for a broker that is down.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_publish_retry": True,
        "task_publish_retry_policy": _RETRY_POLICY,
        "result_backend_always_retry": True,
        # By default Celery gives up on a database backend after three attempts within a second.
        "result_backend_max_retries": _PUBLISH_RETRIES,
        "result_backend_base_sleep_between_retries_ms": 200,
        "result_backend_max_sleep_between_retries_ms": int(_PUBLISH_WAIT_SECONDS * 1000),
        "result_expires": _RESULTS_KEPT_SECONDS,
        "result_backend_transport_options": {"retry_policy": _RETRY_POLICY},
        # A solo worker cannot send heartbeats during a step; a dead one closes its connection.
        "broker_heartbeat": 0,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_transport_options": _transport_options(settings),
    }


def _transport_options(settings: Settings) -> dict[str, Any]:
    # A run connects when it has a step to send; without this it gives up after four seconds.
    patient: dict[str, Any] = {"connect_retries_timeout": _AWAY_SECONDS}
    if is_redis(broker_url(settings)):
        return patient | {
            "visibility_timeout": settings.celery_visibility_seconds,
            # Seconds between searches for steps of dead workers; the default is 100.
            "unacked_restore_interval": max(1, min(10, settings.celery_visibility_seconds // 4)),
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            # Without a timeout, a client waits forever for a Redis whose machine was lost.
            "socket_timeout": _ANSWER_SECONDS,
        }
    # A RabbitMQ that is being stopped may accept a connection and answer nothing more.
    return patient | {"read_timeout": _ANSWER_SECONDS}
