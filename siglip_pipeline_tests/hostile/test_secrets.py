"""Every setting gets a secret, and all output is searched for the secrets."""

import copy
import json
import pickle
import traceback
from types import NoneType
from typing import Any, Final, get_args

import pytest

from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings, secret_kind
from siglip_pipeline.text.secret import Secret, SecretUrl

MARK: Final = "hunter2"

SECRET: Final = {"api_key", "alert_webhook"}
"""Nothing of the value shows."""
MASKED: Final = {
    *("uploads", "frame_store", "database_url", "dagster_postgres_url"),
    *("celery_broker_url", "celery_backend_url"),
}
"""The value shows without what may be secret in it."""
REFUSED: Final = {"dagster_url", "page_url", "model_name", "source_url"}
"""The value shows to everybody, so one with a secret is refused."""
PLAIN: Final = {
    *("part", "home", "model_revision", "device", "dtype", "batch_size", "sampling", "index_kind"),
    *(
        "recall_texts",
        "judged_queries",
        "quality_metric",
        "host",
        "dagster_host",
        "log_level",
        "executor",
        "trusted_proxies",
        "cache",
        "compile",
        "ranking",
        "http_cors_origins",
    ),
}
"""There is no secret that a person could put there; nor is there in a number."""


def filled(**more: Any) -> Settings:
    """Settings with the mark in each one that may hold a secret."""
    return Settings.load(
        **{
            "uploads": f"http://u:{MARK}@127.0.0.1:9/in",
            "frame_store": f"ftp://u:{MARK}@127.0.0.1:9/frames",
            "database_url": f"postgresql://u:{MARK}@127.0.0.1:9/db",
            "DAGSTER_POSTGRES_URL": f"postgresql+psycopg2://u:{MARK}@127.0.0.1:9/dagster",
            "api_key": f"{MARK}-of-enough-length",
            "alert_webhook": f"http://127.0.0.1:9/services/{MARK}",
            "celery_broker_url": f"redis://:{MARK}@127.0.0.1:9/0",
            "celery_backend_url": f"redis://:{MARK}@127.0.0.1:9/1",
            **more,
        }
    )


def test_every_setting_is_declared_secret_masked_refused_or_plain() -> None:
    numbers = {int, float, bool, NoneType}
    fields = {
        name
        for name, field in Settings.model_fields.items()
        if not set(get_args(field.annotation) or (field.annotation,)) <= numbers
    }
    assert fields == SECRET | MASKED | REFUSED | PLAIN
    assert {field for field in fields if secret_kind(field) is SecretUrl} == MASKED
    assert {field for field in fields if secret_kind(field) is Secret} == SECRET
    given = filled()
    for field in SECRET | MASKED:
        assert MARK in getattr(given, field).reveal(), f"nothing is tested with {field}"


@pytest.mark.parametrize("field", sorted(REFUSED))
@pytest.mark.parametrize("url", [f"https://u:{MARK}@host/x", f"https://host/x?token={MARK}"])
def test_what_everybody_sees_takes_no_secret(field: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"SIGLIP_{field.upper()}") as caught:
        Settings.load(**{field: url})
    assert MARK not in "".join(traceback.format_exception(caught.value))


def test_settings_show_none() -> None:
    given = filled()
    shown = [repr(given), str(given), f"{given}", f"{given!r:>20}", given.model_dump_json()]
    shown += [repr(given.model_dump()), repr(vars(given))]
    shown += [str(given.model_copy(update={"database_url": f"postgresql://u:{MARK}@h/d"}))]
    shown += [given.masked(f"redis.connect({MARK!r}) to redis://:{MARK}@127.0.0.1:9/0 failed")]
    assert all(MARK not in text for text in shown), shown
    harmless = "http://127.0.0.1:9/in answers"
    assert given.masked(harmless) == harmless
    assert "http://u:…@127.0.0.1:9/in" in shown[0]


@pytest.mark.parametrize("kind", [Secret, SecretUrl])
def test_a_secret_is_a_value_but_no_text(kind: type[Secret]) -> None:
    secret = kind(f"s3://key:{MARK}@bucket")
    for text in (
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret:>40}",
    ):
        assert MARK not in text
    with pytest.raises(TypeError):
        json.dumps({"url": secret})
    with pytest.raises(TypeError):
        "a" + secret  # type: ignore[operator]
    for again in (pickle.loads(pickle.dumps(secret)), copy.deepcopy(secret), kind.of(secret)):
        assert type(again) is kind
        assert (again, hash(again)) == (secret, hash(secret))
        assert again.reveal() == f"s3://key:{MARK}@bucket"
    assert secret != kind("s3://bucket")
    assert secret.matches(f"s3://key:{MARK}@bucket")
    assert not secret.matches("s3://key")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:a/b@bucket/in", "s3://key:…@bucket/in"),
        ("redis://:pass@host:6379/0", "redis://:…@host:6379/0"),
        ("https://token@host/x", "https://…@host/x"),
        ("postgresql://name@/db?host=/tmp/x&port=5432", None),
        ("postgresql://u:p@ss@h/d", "postgresql://u:…@h/d"),
        ("postgresql://u:p%40ss@h/d", "postgresql://u:…@h/d"),
        ("postgresql://u:p#a?ss@h/d", "postgresql://…"),
        ("postgresql://h/d?user=u&password=p@ss", "postgresql://…"),
        ("postgresql://h/d?host=x&sslpassword=pass", "postgresql://h/d?host=x&…"),
        ("https://h/x?X-Amz-Credential=a&X-Amz-Signature=b#c", "https://h/x?…&…#…"),
        ("https://account.blob.core.windows.net/c?sv=1&sig=s", None),
        ("host=h password=pass dbname=d", "…"),
        ("sentinel://:pass@a:1;sentinel://:pass@b:2", "sentinel://:…@b:2"),
        ("simplecache::s3://key:secret@bucket/x", "simplecache::s3://key:…@bucket/x"),
        ("user:pass@host/db", "user:…@host/db"),
        ("abfs://container@account.dfs.core.windows.net/x", None),
        ("s3://bucket/in", None),
        ("/a folder/with@and:in/it?x=1", None),
    ],
)
def test_masking(url: str, shown: str | None) -> None:
    if "?sv=" in url:
        shown = "https://account.blob.core.windows.net/c?…&…"
    assert str(SecretUrl(url)) == (url if shown is None else shown)


def test_what_libraries_say_is_masked() -> None:
    def said(url: str, text: str) -> str:
        return SecretUrl(url).masked(text)

    assert said("postgresql://u:pa@h/d", "bad port 'pa'") == "bad port 'pa'"  # too short
    assert said("postgresql://u:part/x@h/d", "bad port 'part'") == "bad port '…'"
    assert said("postgresql://u:p%40rt@h/d", "FATAL: 'p@rt' is wrong") == "FATAL: '…' is wrong"
    assert said("postgresql://u:p@rt@h/d", "connect(p%40rt)") == "connect(…)"
    assert said("postgresql://u:data@h/d", "database d") == "database d"
    assert said("http://u:pass@h/d", "404: http://u:pass@h/d/x.mp4") == "404: http://u:…@h/d/x.mp4"
    assert said("postgresql://h/d", "no host") == "no host"
    assert Secret("https://hooks/T0/B0/xyz").masked("bad path /T0/B0/xyz") == "bad path /…"


def test_causes_are_masked_and_keep_their_traceback() -> None:
    url = SecretUrl(f"http://u:{MARK}@host/in")

    def fail() -> None:
        try:
            raise KeyError(MARK)
        except KeyError as inner:
            raise OSError("it failed") from inner

    try:
        try:
            fail()
        except OSError as error:
            raise ValueError("no upload") from url.masked_error(error)
    except ValueError as error:
        told = "".join(traceback.format_exception(error))
    assert MARK not in told
    assert "OSError: it failed" in told
    assert "in fail" in told
    harmless = OSError("it failed")
    assert url.masked_error(harmless) is harmless
