"""How steps travel between machines: queues, broker and result backend, as Celery takes them.

Runs and workers must agree on every word here, so both read this module. It imports no Celery.
"""

from typing import Any, Final

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings
from siglip_pipeline.text.secret import SecretUrl

DEFAULT_QUEUE: Final = "dagster"
"""Dagster's own default: decoding and building indexes, on machines without a GPU."""
EMBEDDING_QUEUE: Final = "siglip"
"""Steps that need the model, on machines with a GPU."""
QUEUE_TAG: Final = "dagster-celery/queue"
"""The op tag that routes a step; tags of assets do not reach it."""

INSTALL: Final = "pip install 'siglip-pipeline[celery]'"

_RESULTS_KEPT_SECONDS: Final = 24 * 3600
# Ten minutes of a broker that is away; then the run fails and Dagster starts it again.
_AWAY_SECONDS: Final = 600
_PUBLISH_RETRIES: Final = 120
_PUBLISH_WAIT_SECONDS: Final = 5.0


def is_redis(broker_url: SecretUrl) -> bool:
    """Whether messages are held by Redis, which takes them back by a clock, not by connection."""
    return broker_url.startswith(("redis://", "rediss://", "sentinel://"))


def broker_url(settings: Settings) -> SecretUrl:
    """The broker.

    Raises:
        SettingsError: none is set.
    """
    if settings.celery_broker_url is None:
        raise SettingsError(
            "SIGLIP_CELERY_BROKER_URL is not set; workers and SIGLIP_EXECUTOR=celery need it, e.g. "
            "redis://redis:6379/0 or amqp://user:password@rabbitmq:5672//"
        )
    return settings.celery_broker_url


def backend_url(settings: Settings) -> SecretUrl:
    """Where results are kept: as set, else a Redis broker, else Dagster's Postgres.

    Celery's own default, ``rpc://``, keeps results in queues that a broker's restart empties.

    Raises:
        SettingsError: there is no default for these settings.
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
    """Celery's settings, for the runs that hand out steps and the workers that take them.

    https://docs.celeryq.dev/en/stable/userguide/configuration.html has each name.

    Raises:
        SettingsError: as :func:`broker_url`.
    """
    config: dict[str, Any] = {
        # A step is acknowledged when it is done: a worker that dies gives it back.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # A broker that went away is waited for, by runs and workers alike.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "task_publish_retry": True,
        "task_publish_retry_policy": {
            "max_retries": _PUBLISH_RETRIES,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": _PUBLISH_WAIT_SECONDS,
        },
        "result_backend_always_retry": True,
        # A database as the backend is otherwise given up after three tries within a second.
        "result_backend_max_retries": _PUBLISH_RETRIES,
        "result_backend_base_sleep_between_retries_ms": 200,
        "result_backend_max_sleep_between_retries_ms": int(_PUBLISH_WAIT_SECONDS * 1000),
        "result_expires": _RESULTS_KEPT_SECONDS,
        "result_backend_transport_options": {
            "retry_policy": {
                "max_retries": _PUBLISH_RETRIES,
                "interval_start": 0.2,
                "interval_step": 0.5,
                "interval_max": _PUBLISH_WAIT_SECONDS,
            }
        },
        # A solo worker answers nothing while a step runs; a dead one closes its connection.
        "broker_heartbeat": 0,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }
    # A run connects when it has a step to hand out; without this it gives up after four seconds.
    config["broker_transport_options"] = {"connect_retries_timeout": _AWAY_SECONDS}
    if is_redis(broker_url(settings)):
        config["broker_transport_options"] |= {
            "visibility_timeout": settings.celery_visibility_seconds,
            # Look for steps of dead workers every so many seconds, not every hundred.
            "unacked_restore_interval": max(1, min(10, settings.celery_visibility_seconds // 4)),
            "unacked_restore_throttle": 1,
            "socket_keepalive": True,
            # Without it a Redis that vanished without a word is waited for for ever.
            "socket_timeout": 30,
        }
    return config
