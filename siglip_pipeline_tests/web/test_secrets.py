"""Marked secrets in every setting that may hold one; then all that is said is searched for them."""

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.snap import JobSnap
from dagster._serdes import serialize_value
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from siglip_pipeline.cli import main as cli
from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.alerts import run_failures
from siglip_pipeline.defs.executors import executor_for
from siglip_pipeline.defs.partitions import VIDEOS_PARTITIONS_NAME, partition_key
from siglip_pipeline.errors import SettingsError, SiglipPipelineError
from siglip_pipeline.settings import Settings, process_environment
from siglip_pipeline.stages.run_names import RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database
from siglip_pipeline.text.secret import SecretUrl
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.web.services import Services
from siglip_pipeline.workers.celery_worker import worker_app
from siglip_pipeline_tests.web.conftest import Collection, serving

pytestmark = pytest.mark.timeout(600)

MARK = "hunter2"
KEY = f"{MARK}-api-key-of-length"
ROLE = "of_the_secrets_test"
AWS = {"AWS_SECRET_ACCESS_KEY": f"{MARK}-aws", "AWS_ACCESS_KEY_ID": "visible"}


@pytest.fixture(scope="module")
def secretive(collection: Collection) -> Iterator[Settings]:
    """The collection of the web tests, behind settings that are full of secrets."""
    url = (collection.settings.database_url or SecretUrl("")).reveal()
    parts = conninfo_to_dict(url)
    role = sql.Identifier(ROLE)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(role, f"{MARK}-db")
        )
        try:
            where = f"{ROLE}:{MARK}-db@/{parts['dbname']}?host={parts['host']}&port={parts['port']}"
            yield Settings.load(
                **collection.settings.model_dump(
                    exclude={
                        *("database_url", "dagster_postgres_url", "api_key", "alert_webhook"),
                        *("celery_broker_url", "celery_backend_url", "log_level"),
                    }
                ),
                database_url=f"postgresql://{where}",
                DAGSTER_POSTGRES_URL=f"postgresql+psycopg2://{where}",
                api_key=KEY,
                alert_webhook=f"http://127.0.0.1:9/{MARK}-hook",
                celery_broker_url=f"redis://:{MARK}-broker@127.0.0.1:9/0",
                celery_backend_url=f"redis://:{MARK}-backend@127.0.0.1:9/0",
                log_level="DEBUG",
            )
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(role))


def broken(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


@pytest.fixture
def said(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[list[str]]:
    """What a test adds to it, what is printed and what is logged: none of it may hold the mark."""
    heard: list[str] = []
    with caplog.at_level(logging.DEBUG):
        yield heard
    printed = capsys.readouterr()
    heard += [printed.out, printed.err, caplog.text]
    heard += [str(record.__dict__) for record in caplog.records]
    assert sum(map(len, heard)) > 20, "nothing was said: nothing was tested"
    for text in heard:
        at = text.find(MARK)
        assert at < 0, f"a secret was told: …{text[max(0, at - 200) : at + 40]}…"


def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", *arguments])
    with process_environment(settings, **AWS), pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["search", "a red circle"],
        ["search", "--like", "no.mp4@1"],
        ["models", "list"],
        ["models", "promote", "no-such-key"],
        ["duplicates"],
        ["db", "status"],
        ["db", "migrate"],
        ["materialize", "../x"],
        ["materialize", "one.mp4", "--no-wait"],
        ["materialize", "one.mp4", "--dagster-url", "http://127.0.0.1:9"],
        ["ingest", "/nowhere.mp4"],
    ],
    ids=" ".join,
)
def test_commands_do_not_tell(
    secretive: Settings, monkeypatch: pytest.MonkeyPatch, said: list[str], command: list[str]
) -> None:
    assert run(monkeypatch, secretive, *command) in (0, 1, 2)
    elsewhere = f"postgresql://u:{MARK}-db@127.0.0.1:9/x"
    if command[0] != "ingest" and "../x" not in command and "--no-wait" not in command:
        assert run(monkeypatch, broken(secretive, database_url=elsewhere), *command) == 2


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{MARK}%zz@host/db",
        f"postgresql://u:{MARK}@[::1/db",
        f"postgresql://u:{MARK}@host:port/db",
        f"postgresql://u:1/{MARK}@127.0.0.1/db",
        f"postgresql://u:{MARK}/x@127.0.0.1/db",
        f"postgresql://u:x@127.0.0.1:9/db?password={MARK}",
        f"postgresql://u:x@127.0.0.1:9/db?{MARK}=1",
        f"postgresql://u:{MARK}@127.0.0.1:9/db?connect_timeout=soon",
        f"mysql://u:{MARK}@host/db",
        f"u:{MARK}@host/db",
    ],
)
def test_addresses_that_cannot_be_used_are_not_repeated(
    secretive: Settings, monkeypatch: pytest.MonkeyPatch, said: list[str], url: str
) -> None:
    with pytest.raises(SiglipPipelineError) as caught:
        Database(Settings.load(database_url=url).database_url or "")
    said += [str(caught.value)]
    if isinstance(caught.value, SettingsError):
        said += traceback.format_exception(caught.value)
        assert "SIGLIP_DATABASE_URL" in str(caught.value)
    assert run(monkeypatch, broken(secretive, database_url=url), "status") == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIGLIP_API_KEY", f"{MARK} x"),
        ("SIGLIP_CELERY_BROKER_URL", f"http://u:{MARK}@h"),
        ("SIGLIP_DATABASE_URL", f"postgresql+psycopg2://u:{MARK}@h/d"),
    ],
)
def test_settings_that_cannot_be_used_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, said: list[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name) as caught:
        Settings.load()
    said += traceback.format_exception(caught.value)


def test_records_and_stores_do_not_show_them(secretive: Settings, said: list[str]) -> None:
    said += [repr(secretive), str(secretive), f"{secretive}"]
    with Database(secretive.database_url or "") as database, database.connection() as connection:
        services = Services.open(secretive, database)
        said += [repr(database), repr(vars(database)), repr(connection), repr(services)]
        said += [repr(vars(services.search)), repr(vars(services.embedder))]
        services.close()
    for store in (UploadStore, FrameStore):
        url = f"ftp://user:{MARK}@127.0.0.1:9/x"
        try:
            said.append(repr(store(url)))
        except (SiglipPipelineError, OSError) as error:
            said.append(str(error))
    with pytest.raises(SiglipPipelineError) as caught:
        UploadStore(f"nosuch://key:{MARK}@bucket/x")
    said.append(str(caught.value))
    uploads = UploadStore(f"http://user:{MARK}@127.0.0.1:9/in")
    for call in (
        lambda: list(uploads.list()),
        lambda: uploads.get("../x"),
        lambda: uploads.get("x"),
    ):
        with pytest.raises(SiglipPipelineError) as failed:
            call()
        said.append(str(failed.value))


def test_dagster_records_none(secretive: Settings, said: list[str]) -> None:
    broken_film = partition_key("broken <b>.mp4")
    with process_environment(secretive, **AWS), dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(VIDEOS_PARTITIONS_NAME, [broken_film])
        job = defs.resolve_implicit_global_asset_job_def()
        # One that is not tried again: retries wait for minutes.
        elsewhere = broken(secretive, database_url=f"postgresql://u:{MARK}-db@127.0.0.1:port/x")
        for settings in (secretive, elsewhere):
            with process_environment(settings):
                result = job.execute_in_process(
                    instance=instance,
                    asset_selection=[dg.AssetKey("video_frames")],
                    tags={RANGE_START_TAG: broken_film, RANGE_END_TAG: broken_film},
                    raise_on_error=False,
                )
            said += [str(event) for event in instance.all_logs(result.run_id)]
            if result.is_node_failed("video_frames"):
                context = dg.build_run_status_sensor_context(
                    sensor_name="run_failures",
                    dagster_instance=instance,
                    dagster_run=result.dagster_run,
                    dagster_event=result.get_run_failure_event(),
                ).for_run_failure()
                run_failures(context)
        said += [serialize_value(record.dagster_run) for record in instance.get_run_records()]
        said.append(serialize_value(JobSnap.from_job_def(job)))


def test_steps_on_celery_carry_none(secretive: Settings, said: list[str]) -> None:
    executor = executor_for(broken(secretive, executor="celery"))

    @dg.op
    def nothing() -> None: ...

    @dg.job(executor_def=executor)
    def remote() -> None:
        nothing()

    said.append(serialize_value(JobSnap.from_job_def(remote)))
    app = worker_app(secretive)
    said += [repr(app), app.connection().as_uri(), str(app.conf.humanize(with_defaults=False))]


@pytest.mark.parametrize("works", [True, False])
def test_answers_over_http_hold_none(secretive: Settings, said: list[str], works: bool) -> None:
    with serving(secretive) as running:
        if not works:
            running.app._app.state.services.database._pool.close()  # type: ignore[attr-defined]
        for headers in ({}, {"X-API-Key": KEY}, {"X-API-Key": "wrong"}):
            for path in (
                *("/", "/status", "/videos", "/login", "/openapi.json", "/api/status"),
                *("/api/videos", "/api/search?q=x", "/api/similar?like=x@1", "/readyz", "/nothing"),
                *("/api/videos/1/stream", "/api/thumbnails/1/0.jpg", "/videos/99999"),
            ):
                for accept in ("text/html", "application/json"):
                    answer = running.client.get(path, headers={**headers, "Accept": accept})
                    said += [answer.text, json.dumps(dict(answer.headers))]
        answer = running.client.post("/login", data={"key": KEY, "next": "/"})
        said += [answer.text, str(answer.headers)]


def test_files_that_the_launcher_writes_hold_none(
    secretive: Settings, tmp_path: Path, said: list[str]
) -> None:
    from siglip_pipeline.services.home import prepare_dagster_home

    with process_environment(secretive):
        home = prepare_dagster_home(secretive.model_copy(update={"home": tmp_path}))
    files = [file for file in home.rglob("*") if file.is_file()]
    assert files
    said += [file.read_text() for file in files]
