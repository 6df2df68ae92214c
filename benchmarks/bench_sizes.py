"""How many bytes does a frame take in Postgres, by type and dimensions of its vector?

Tables as the store makes them (key of video and frame, the vector stored PLAIN), filled with random
vectors: their content does not matter, their length does.

    python benchmarks/bench_sizes.py [--json] [--rows 20000]
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql
from store_report import Case, print_report

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.store.database import Database, migrate

VECTORS = {
    ("halfvec", 768): "base",
    ("halfvec", 1024): "large",
    ("halfvec", 1152): "so400m",
    ("halfvec", 1536): "g-opt",
    ("vector", 768): "for comparison",
    ("vector", 1152): "for comparison",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args(arguments)
    # In a folder that the user who runs Postgres for root can reach.
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)).lease() as url:
            with Database(url) as database:
                migrate(database)
            cases = [
                Case(
                    name=f"{kind}_{dim}",
                    value=bytes_per_row(url, kind, dim, options.rows),
                    unit="bytes_per_frame",
                    better="lower",
                    note=model,
                )
                for (kind, dim), model in VECTORS.items()
            ]
    print_report("sizes", cases, as_json=options.json)


def bytes_per_row(url: str, kind: str, dim: int, rows: int) -> float:
    """Size of a table with its key, over its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                "CREATE TABLE sized (video_id integer NOT NULL, frame_index integer NOT NULL,"
                " time_seconds double precision NOT NULL,"
                " embedding {}({}) STORAGE PLAIN NOT NULL, PRIMARY KEY (video_id, frame_index))"
            ).format(sql.SQL(kind), sql.Literal(dim))
        )
        connection.execute(
            sql.SQL(
                "INSERT INTO sized SELECT n / 600, n % 600, n, array_fill(0.5::real, ARRAY[{}])"
                "::vector::{} FROM generate_series(1, {}) n"
            ).format(sql.Literal(dim), sql.SQL(kind), sql.Literal(rows))
        )
        connection.execute("VACUUM ANALYZE sized")
        size = connection.execute("SELECT pg_total_relation_size('sized')").fetchone()
        connection.execute("DROP TABLE sized")
    assert size is not None
    return float(size[0]) / rows


if __name__ == "__main__":
    main()
