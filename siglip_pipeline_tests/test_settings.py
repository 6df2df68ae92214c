"""Settings: read from the environment, refused with a remedy, documented without exception."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import (
    Settings,
    compute_in_one_thread,
    misspelt_variables,
    process_environment,
)
from siglip_pipeline.text.secret import SecretUrl

ROOT = Path(__file__).parents[1]


def test_environment_is_read_with_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP_MODEL_NAME", "google/siglip2-so400m-patch14-384")
    monkeypatch.setenv("SIGLIP_BATCH_SIZE", "12")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql+psycopg2://somewhere/dagster")
    monkeypatch.setenv("SIGLIP_DEVICE", "")
    monkeypatch.setenv("siglip_sampling", "every:9")
    settings = Settings.load()
    assert settings.device == "auto", "an empty variable is as good as none"
    assert settings.sampling == "every:9", "names are read in any case"
    assert settings.model_name == "google/siglip2-so400m-patch14-384"
    assert settings.batch_size == 12
    assert settings.dagster_postgres_url == SecretUrl("postgresql+psycopg2://somewhere/dagster")
    other = "postgresql+psycopg2://other/dagster"
    for name in ("dagster_postgres_url", "DAGSTER_POSTGRES_URL"):
        assert Settings.load(**{name: other}).dagster_postgres_url == SecretUrl(other)


def test_the_driver_of_dagsters_storage_may_be_left_out() -> None:
    """SQLAlchemy 2.1 took another one: a full disk and an unknown host were not recognized."""
    settings = Settings.load(dagster_postgres_url="postgresql://u:p@somewhere/dagster")
    assert settings.dagster_postgres_url == SecretUrl("postgresql+psycopg2://u:p@somewhere/dagster")
    with process_environment(settings):
        assert os.environ["DAGSTER_POSTGRES_URL"].startswith("postgresql+psycopg2://u:p@")
    with pytest.raises(
        SettingsError, match=r"must start with postgresql\+psycopg2:// or postgresql://"
    ):
        Settings.load(dagster_postgres_url="mysql://somewhere/dagster")


def test_the_address_of_the_page_is_one_that_opens() -> None:
    """Links from Dagster and webhooks were `http://::1:8000/…`, and `http://0.0.0.0:8000/…`."""
    for host, shown in (("::1", "[::1]"), ("0.0.0.0", "127.0.0.1"), ("search", "search")):
        settings = Settings.load(host=host, page_port=8000)
        assert settings.page_address("videos/7") == f"http://{shown}:8000/videos/7"
    assert Settings.load(page_url="https://page.example/").page_address("x") == (
        "https://page.example/x"
    )


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # A service of Kubernetes by the name siglip, and variables of the files in deploy.
    for name in ("SERVICE_HOST", "SERVICE_PORT", "PORT_8000_TCP_ADDR", "IMAGE", "NAME"):
        monkeypatch.setenv(f"SIGLIP_{name}", "x")
    monkeypatch.setenv("SIGLIP_SAMPLING", "every:9")
    assert misspelt_variables() == []
    monkeypatch.setenv("SIGLIP_DAGSTER_POSTGRES_URL", "x")  # that setting has no prefix
    [sentence] = misspelt_variables()
    assert sentence.endswith("did you mean DAGSTER_POSTGRES_URL?")
    monkeypatch.setenv("SIGLIP_SAMPLINGS", "every:9")
    monkeypatch.setenv("siglip_api_keys", "a key of somebody")
    load = "from siglip_pipeline.cli.common import load_settings; load_settings()"
    done = subprocess.run([sys.executable, "-c", load], stderr=subprocess.PIPE, text=True)
    for name, meant in (("SIGLIP_SAMPLINGS", "SAMPLING"), ("siglip_api_keys", "API_KEY")):
        assert (
            f"{name} is no setting and has no effect; did you mean SIGLIP_{meant}?" in done.stderr
        )
    assert "somebody" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGLIP_DTYPE", "float8"),
        ("SIGLIP_INDEX_KIND", "faiss"),
        ("SIGLIP_DAGSTER_PORT", "70000"),
        ("SIGLIP_BATCH_SIZE", "many"),
        ("SIGLIP_BATCH_SIZE", "0"),
        ("SIGLIP_DEVICE", "cudaa"),
        ("SIGLIP_DEVICE", "cuda:"),
        ("DAGSTER_POSTGRES_URL", "sqlite:///x"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        Settings.load()
    assert value in str(caught.value)


def test_settings_survive_the_way_to_a_child_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings.load(home=tmp_path / "h", sampling="every:5", deduplicate_frames=True)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings


def test_relative_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(uploads="in", home=Path("home"))
    assert settings.uploads.folder == tmp_path / "in"
    assert settings.home == tmp_path / "home"
    assert Settings.load(uploads="s3://bucket/in").uploads == SecretUrl("s3://bucket/in")


def test_secrets_show_neither_in_repr_nor_in_errors() -> None:
    settings = Settings.load(database_url="postgresql://me:hunter2@db/x")
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingsError, match="SIGLIP_DATABASE_URL") as caught:
        Settings.load(database_url="mysql://me:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_every_setting_is_documented() -> None:
    script = ROOT / "scripts" / "write_settings_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("2", "2")])
def test_numpy_computes_in_one_thread_unless_told_otherwise(
    given: str | None, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", given or "")  # so that it is put back
    if given is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    compute_in_one_thread()
    assert os.environ["OPENBLAS_NUM_THREADS"] == threads


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@db/x", "rpc://", "mydb"])
def test_a_place_of_results_that_celery_would_import_is_refused(url: str) -> None:
    """It looked for a module of the scheme's name, and ended with a traceback."""
    with pytest.raises(SettingsError, match=r"BACKEND_URL.*must start with db") as said:
        Settings.load(celery_backend_url=url)
    assert "hunter2" not in str(said.value)
    for usable in ("db+postgresql+psycopg2://me:x@db/x", "redis://r/1", "sentinel://a:1;b:2"):
        assert Settings.load(celery_backend_url=usable).celery_backend_url is not None
