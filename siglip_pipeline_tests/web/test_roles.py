"""The roles of docs/security.md, made by its own statements: one works, the other reads."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.store.database import Database, migrate
from siglip_pipeline_tests.web.conftest import Collection, index_uploads, serving

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
SUFFIX = "_of_test"


class Roles(NamedTuple):
    admin: str
    pipeline: str
    reader: str


@pytest.fixture(scope="module")
def roles(postgres: EmbeddedPostgres) -> Iterator[Roles]:
    server, inside = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    server, inside = (
        # The server of these tests has a database of that name already.
        re.sub(r"\bsiglip(_\w+)?\b", lambda name: name[0] + SUFFIX, text)
        for text in (server, inside)
    )
    url = postgres.url("postgres")

    def run(url: str, statements: str) -> None:
        with psycopg.connect(url, autocommit=True) as admin:
            for statement in statements.split(";"):
                if statement.strip():
                    admin.execute(statement.encode())

    def as_role(role: str, password: str) -> str:
        parts = conninfo_to_dict(url)
        return (
            f"postgresql://{role}{SUFFIX}:{password}@/siglip{SUFFIX}?host={parts['host']}"
            f"&port={parts['port']}"
        )

    run(url, server)
    try:
        run(postgres.url(f"siglip{SUFFIX}"), inside)
        yield Roles(
            postgres.url(f"siglip{SUFFIX}"),
            as_role("siglip_pipeline", "change-me-1"),
            as_role("siglip_reader", "change-me-2"),
        )
    finally:
        with psycopg.connect(url, autocommit=True) as admin:
            for database in ("siglip", "siglip_dagster"):
                admin.execute(
                    sql.SQL("DROP DATABASE {} WITH (FORCE)").format(
                        sql.Identifier(database + SUFFIX)
                    )
                )
            for role in ("siglip_pipeline", "siglip_reader"):
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role + SUFFIX)))


def test_the_pipeline_works_and_the_service_reads(
    roles: Roles, collection: Collection, tmp_path: Path
) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "one.mp4").write_bytes((Path(collection.settings.uploads) / "one.mp4").read_bytes())
    settings = collection.settings.model_copy(
        update={"database_url": roles.pipeline, "uploads": str(uploads), "home": tmp_path}
    )
    with Database(roles.pipeline) as database:
        assert migrate(database)
    index_uploads(settings)
    (uploads / "two.avi").write_bytes((Path(collection.settings.uploads) / "old.avi").read_bytes())
    # An index of a later day: its tables are new, and must be readable too.
    index_uploads(settings)
    with serving(settings, database_url=roles.reader) as running:
        for path in (
            "/api/search?q=a+red+circle",
            "/api/similar?like=one.mp4@3",
            "/api/videos",
            "/api/videos/1",
            "/api/duplicates?segments=true",
            "/api/status",
            "/readyz",
            "/status",
            "/duplicates",
            "/api/watches",
            "/watches",
            "/api/evaluations",
            "/evaluations",
            "/videos/1",
            "/",
        ):
            answer = running.client.get(path)
            assert answer.status_code == 200, (path, answer.text)
        assert running.client.get("/api/search?q=a+red+circle").json()["hits"]
    with Database(roles.reader) as database:
        assert migrate(database) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM videos",
        "UPDATE videos SET path = 'x'",
        "INSERT INTO videos (path) VALUES ('x')",
        "DROP TABLE frames_1",
        "CREATE TABLE x (i integer)",
        "CREATE TEMPORARY TABLE x (i integer)",
        "CREATE DATABASE x",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY videos TO PROGRAM 'id'",
        "SELECT * FROM pg_authid",
    ],
)
def test_the_reader_only_reads(roles: Roles, statement: str) -> None:
    with Database(roles.pipeline) as database:
        migrate(database)
    with psycopg.connect(roles.reader, autocommit=True) as reader:
        # The setting that the role begins with is a help for mistakes, not the lock.
        reader.execute("SET default_transaction_read_only = off")
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable)):
            reader.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE DATABASE x",
        "CREATE ROLE x",
        "ALTER ROLE siglip_pipeline_of_test SUPERUSER",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "CREATE EXTENSION file_fdw",
        "ALTER SYSTEM SET work_mem = '1GB'",
    ],
)
def test_the_pipeline_owns_its_databases_and_no_more(roles: Roles, statement: str) -> None:
    with (
        psycopg.connect(roles.pipeline, autocommit=True) as pipeline,
        pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)),
    ):
        pipeline.execute(statement.encode())


def test_others_have_no_business_there(roles: Roles) -> None:
    with psycopg.connect(roles.admin, autocommit=True) as admin:
        admin.execute("CREATE ROLE stranger_of_test LOGIN PASSWORD 'x'")
        try:
            url = roles.reader.replace("siglip_reader_of_test:change-me-2", "stranger_of_test:x")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(url)
        finally:
            admin.execute("DROP ROLE stranger_of_test")
