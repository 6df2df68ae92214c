"""`siglip-pipeline worker`: take steps from a queue and run them in this very process.

The Celery application and its task are dagster-celery's. What is added here: the worker uses its
own Dagster instance rather than the folders of the machine that sent the step, leaves steps of
runs that are over, serves every shard of a divided collection (:mod:`.workers.shards`), and keeps
its lease on the message (:mod:`.workers.leases`).

The pool is ``solo``: the step runs in the worker's main thread, so a model that
:func:`~siglip_pipeline.siglip.model.get_model` has loaded serves every later step and run.
"""

import json
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import psycopg2
import sqlalchemy.exc
from celery import Celery, Task
from celery.exceptions import Reject
from celery.signals import worker_ready
from celery.worker import state
from dagster import (
    DagsterEventType,
    DagsterExecutionInterruptedError,
    DagsterInstance,
    DagsterRunStatus,
)
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task
from dagster_postgres.utils import DagsterPostgresException

from siglip_pipeline.defs.internals import copy_step_for, run_of_step
from siglip_pipeline.defs.queues import (
    EMBEDDING_QUEUE,
    backend_url,
    broker_url,
    celery_config,
    is_redis,
)
from siglip_pipeline.errors import DatabaseUnavailableError, SettingsError
from siglip_pipeline.services.home import pipeline_environment
from siglip_pipeline.services.instance import open_instance
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database, where
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.text.in_words import in_one_line
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.workers.connection_check import ConnectionCheck
from siglip_pipeline.workers.leases import renewed_lease
from siglip_pipeline.workers.shards import serve_shard, shard_of_run

logger = logging.getLogger(__name__)

_RENEWALS_PER_TIMEOUT = 4
# Dagster's storage is away while Postgres restarts; a quarter of an hour of tries in all.
_STORAGE_ERRORS = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    psycopg2.OperationalError,
    # What Dagster says after six seconds of tries of its own.
    DagsterPostgresException,
)
_STORAGE_RETRIES = 20
_STORAGE_FIRST_WAIT_SECONDS = 2
_STORAGE_WAIT_SECONDS = 60
_ANSWER_SECONDS = 15

_OF_VIDEOS = {
    DagsterEventType.ASSET_MATERIALIZATION.value,
    DagsterEventType.ASSET_OBSERVATION.value,
    DagsterEventType.ASSET_CHECK_EVALUATION.value,
}


class StepTask(Task):  # type: ignore[misc]  # Celery has no types
    """Around dagster-celery's task: this machine's instance, runs that are over, the lease."""

    settings: Settings
    # Celery's log shows results, which here are all the events of a step.
    resultrepr_maxsize = 32

    def __call__(
        self, execute_step_args_packed: dict[str, Any], executable_dict: dict[str, Any]
    ) -> Any:
        """Run one step; those of its events that the run needs, none if the run is over.

        While Dagster's storage is away the step goes back and is tried again.

        Raises:
            SettingsError: the storage does not know the run, which fails with this reason.
        """
        try:
            return self._step(execute_step_args_packed, executable_dict)
        except _STORAGE_ERRORS as error:
            wait = min(_STORAGE_FIRST_WAIT_SECONDS * 2**self.request.retries, _STORAGE_WAIT_SECONDS)
            logger.warning("Dagster's storage is away: the step is tried again in %d s", wait)
            raise self.retry(exc=error, countdown=wait, max_retries=_STORAGE_RETRIES) from error

    def _step(
        self, execute_step_args_packed: dict[str, Any], executable_dict: dict[str, Any]
    ) -> list[str]:
        run_id = run_of_step(execute_step_args_packed)
        with DagsterInstance.get() as instance:
            run = instance.get_run_by_id(run_id)
            if run is None:
                # Left out, the step would make the run fail without a reason.
                raise SettingsError(
                    f"the worker {self.request.hostname} does not find run {run_id} in the Dagster "
                    f"storage that it uses, {_dagster_storage(self.settings)}: give it the "
                    "DAGSTER_POSTGRES_URL of the services that start runs, unless the run was "
                    "deleted"
                )
            if run.is_finished or run.status == DagsterRunStatus.CANCELING:
                logger.warning(
                    "a step of run %s is left out: the run is %s", run_id, run.status.value
                )
                return []
            serve_shard(shard_of_run(run))
            # The sender's instance names folders of the sender's machine.
            own = copy_step_for(instance, execute_step_args_packed)
        try:
            with self._lease():
                events = self.run(execute_step_args_packed=own, executable_dict=executable_dict)
                return _what_the_run_needs(events)
        except DagsterExecutionInterruptedError as error:
            # Dagster takes SIGTERM and SIGINT while a step runs. What is done of it is stored.
            logger.warning("stopping: a step of run %s goes back to the queue", run_id)
            state.should_stop = 0
            raise Reject(error, requeue=True) from None

    def _lease(self) -> Any:
        tag = (self.request.properties or {}).get("delivery_tag")
        if tag is None or not is_redis(broker_url(self.settings)):
            return nullcontext()
        every = self.settings.celery_visibility_seconds / _RENEWALS_PER_TIMEOUT
        return renewed_lease(self.app, tag, every_seconds=every)


def _what_the_run_needs(events: Sequence[str]) -> list[str]:
    """Return a step's serialized events without those that concern single videos.

    The worker has told Dagster all of them. The run only waits for the step's outcome, and events
    of videos hold pictures: some 20 KB a video that the result backend would keep for a day.
    """
    return [event for event in events if json.loads(event)["event_type_value"] not in _OF_VIDEOS]


def worker_app(settings: Settings) -> Celery:
    """Return the Celery application of a worker, not yet connected.

    Raises:
        SettingsError: no broker is named.
    """
    app: Celery = make_app(  # type: ignore[no-untyped-call]
        {
            "broker": broker_url(settings).reveal(),
            "backend": backend_url(settings).reveal(),
            "config_source": celery_config(settings),
        }
    )
    create_task(  # type: ignore[no-untyped-call]
        app,
        base=type("ConfiguredStepTask", (StepTask,), {"settings": settings}),
    )
    app.steps["consumer"].add(ConnectionCheck)
    logging.getLogger("celery.backends.base").addFilter(_with_reason_in_one_line)
    return app


def _with_reason_in_one_line(record: logging.LogRecord) -> bool:
    """Put the reason of a try to store a result in its line: Celery tries 120 times, each with a
    traceback of a hundred lines.
    """
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()} {in_one_line(record.exc_info[1])}", ()
        record.exc_info = None
    return True


def run_worker(settings: Settings, queues: Sequence[str], *, name: str | None = None) -> int:
    """Take steps until SIGTERM or SIGINT; the step in hand then goes back to the queue.

    Args:
        settings: of this machine; unset databases mean the embedded ones of its home.
        queues: where steps come from.
        name: of the worker, before ``@host``; unset: made of the queues and the process id.

    Returns:
        The exit code.

    Raises:
        SettingsError: no broker is named.
        StoreError: a database cannot be used, that of Dagster and that of results included.
    """
    for chatty in ("celery", "siglip_pipeline"):
        logging.getLogger(chatty).setLevel(min(logging.INFO, logging.getLogger().level))
    settings = settings.model_copy(update={"executor": "celery"})
    with pipeline_environment(settings) as complete:
        # Or each step would be taken from the queue, tried for a quarter of an hour, and fail.
        options = DatabaseOptions.from_settings(complete)
        with open_instance(complete), open_database(options) as database:
            _check_results(complete)
            other = _other_model(database, complete) if EMBEDDING_QUEUE in queues else None
        if other is not None:
            logger.warning("%s", other)
        import_module("siglip_pipeline.definitions")  # before the first step asks for them
        app = worker_app(complete)
        name = name or f"{'-'.join(queues)}-{os.getpid()}"
        _announce(complete, queues)
        worker_ready.connect(_clean_results, weak=False)
        worker = app.Worker(
            queues=list(queues),
            pool="solo",
            concurrency=1,
            hostname=f"{name}@{socket.gethostname()}",
            # Workers need not know of each other; a fleet would chat all day.
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel=logging.INFO,
        )
        worker.start()
        return int(worker.exitcode or 0)


def _check_results(settings: Settings) -> None:
    """Raise if results are kept in a database that does not answer.

    Celery would ask it for ten minutes before the worker takes a step, and after each step.
    """
    url = backend_url(settings)
    if is_redis(url):
        return  # it is waited for, as the broker is
    try:
        psycopg2.connect(_for_libpq(url).reveal(), connect_timeout=_ANSWER_SECONDS).close()
    except psycopg2.Error as error:
        raise DatabaseUnavailableError(
            "no connection to the database for results of steps (SIGLIP_CELERY_BACKEND_URL): "
            f"{in_one_line(url.masked(error))}"
        ) from url.masked_error(error)


def _other_model(database: Database, settings: Settings) -> str | None:
    """Return a warning if this worker embeds with another model than searches ask."""
    active = ModelStore(database).active()
    if active is None or active.name == settings.model_name:
        return None
    return (
        f"this worker embeds with {settings.model_name}, and searches ask {active.name}: unless "
        "the model is being changed, or lies in another folder here, give it the SIGLIP_MODEL_NAME "
        "of the services that start runs"
    )


def _dagster_storage(settings: Settings) -> str:
    assert settings.dagster_postgres_url is not None  # pipeline_environment sets it
    return where(_for_libpq(settings.dagster_postgres_url))


def _for_libpq(url: SecretUrl) -> SecretUrl:
    """Return the URL of a database without what Celery and SQLAlchemy add to its scheme."""
    return SecretUrl(url.reveal().removeprefix("db+").replace("+psycopg2", "", 1))


def _announce(settings: Settings, queues: Sequence[str]) -> None:
    assert settings.database_url is not None
    places = {
        "queues": ", ".join(queues),
        "database": where(settings.database_url),
        "Dagster's storage": _dagster_storage(settings),
        "uploads": settings.uploads,
        "frames": settings.frame_store_url,
        "model": settings.model_name,
        "device": settings.device,
    }
    logger.info("worker: %s", "; ".join(f"{what} {value}" for what, value in places.items()))


def _clean_results(sender: Any, **_: Any) -> None:
    """Delete expired results; Redis does so by itself, a database needs to be told."""
    try:
        sender.app.backend.cleanup()
    except Exception as error:
        logger.warning("old results could not be deleted: %s", error)
