"""What else could find frames? Other designs beside the one of the program, on the same frames.

Each is built beside the live index of a made collection (``vectors.py``) and asked the same queries
in turns, at rising ``ef_search``, for what a search for ten hits needs: the ten best moments, each
by its best frame. Recall is against a comparison of all frames:

- ``means``: as the program does, a graph of one mean per moment, then all frames of forty moments;
- ``centred``: the same graph over means less their common part, which texts do not have;
- ``representatives``: frames chosen so that each frame is near one, up to four per moment;
- ``codes``: forty moments, the best two frames of each by one bit per dimension, then vectors;
- ``one_row``: the frames of a moment as an array in one row;
- ``scattered``: frames stored in random order, which is how much order is worth.

Then, with filters to shares of the videos: the program's search, all moments with the videos looked
up in a bitmap or by their ids, and a walk that goes on until enough is in scope.

    python benchmarks/bench_candidates.py [--quick] [--json] [--frames N] [--neighbours 0.97]
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_growth import MODEL, first_build, random_scope, settings_of
from bench_index import log
from pgvector import HalfVector
from psycopg import sql
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.records import EmbeddingBatch, FloatArray
from siglip_pipeline.store import generations, tables
from siglip_pipeline.store.copy import copy_rows
from siglip_pipeline.store.database import Connection, Database, DatabaseOptions, open_database
from siglip_pipeline.store.index.recall.truth import found_share
from siglip_pipeline.store.kinds import Generation, Scope
from siglip_pipeline.store.moments import Moments, cut_moments
from siglip_pipeline.store.search.execution import choose_kind, effort_of, set_up

QUERIES = 60
"""Of each modality."""
MOMENTS = 40
"""As many as a search for ten hits compares."""
REPRESENTATIVES = 4
NEAR_ONE = 0.95
"""Cosine of each frame with a representative, as far as four can."""
SHORTLIST = 2
"""Frames of a moment."""
SHARES = (0.05, 0.3)
EF_SEARCH = (40, 100, 200, 400, 800)

_BEST = """
SELECT near.video_id, near.first_frame, best.distance
FROM ({moments}) near
CROSS JOIN LATERAL (
    SELECT f.embedding <#> {query} AS distance FROM {frames} f
    WHERE f.video_id = near.video_id AND f.frame_index BETWEEN near.first_frame AND near.last_frame
    ORDER BY distance LIMIT 1
) best
ORDER BY distance LIMIT 10
"""

_WALK = """
SELECT m.video_id, m.first_frame, m.last_frame FROM {table} m
WHERE {wanted} ORDER BY m.embedding <#> {query} LIMIT {rows}
"""

_ALL = """
SELECT m.video_id, m.first_frame, m.last_frame FROM {table} m
WHERE {wanted} ORDER BY (m.embedding <#> {query}) + 0 LIMIT {rows}
"""

_REPRESENTATIVES = """
SELECT * FROM (
    SELECT DISTINCT ON (video_id, first_frame) * FROM (
        SELECT video_id, first_frame, last_frame, embedding <#> {query} AS distance
        FROM candidate_representatives ORDER BY embedding <#> {query} LIMIT {rows}
    ) each ORDER BY video_id, first_frame, distance
) moment ORDER BY distance LIMIT {moments}
"""

_CODES = """
SELECT near.video_id, near.first_frame, best.distance
FROM ({moments}) near
JOIN candidate_codes c USING (video_id, first_frame)
CROSS JOIN LATERAL (
    SELECT f.embedding <#> {query} AS distance
    FROM (
        SELECT frame.frame_index FROM unnest(c.frame_indexes, c.codes) AS frame(frame_index, code)
        ORDER BY frame.code <~> binary_quantize({query} - %(mean)s::{vector})::bit({dim})
        LIMIT {short}
    ) likely
    JOIN {frames} f ON f.video_id = near.video_id AND f.frame_index = likely.frame_index
    ORDER BY distance LIMIT 1
) best
ORDER BY distance LIMIT 10
"""

_ONE_ROW = """
SELECT near.video_id, near.first_frame, best.distance
FROM ({moments}) near
JOIN candidate_one_row c USING (video_id, first_frame)
CROSS JOIN LATERAL (
    SELECT min(embedding <#> {query}) AS distance FROM unnest(c.embeddings) AS embedding
) best
ORDER BY distance LIMIT 10
"""

_EACH_FRAME = """
FROM {table} m CROSS JOIN LATERAL (
    SELECT {values}
    FROM (SELECT * FROM {frames} f WHERE f.video_id = m.video_id
          AND f.frame_index BETWEEN m.first_frame AND m.last_frame) f
) frames
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement with ``%(query)s`` for the ten best moments; the distance is the third column."""

    name: str
    statement: str


class Collection:
    """A published collection, and the text parts of statements about it."""

    def __init__(self, database: Database, footage: Footage) -> None:
        self.database, self.footage = database, footage
        with database.connection() as connection:
            target = generations.live(connection, MODEL)
            assert target is not None
            [(self.threshold,)] = connection.execute(
                "SELECT moment_threshold FROM models WHERE model_id = %s", [MODEL]
            ).fetchall()
        self.target: Generation = target
        self.queries = {
            "pictures": footage.picture_queries(QUERIES),
            "texts": footage.text_queries(QUERIES),
        }
        vector = f"halfvec({footage.dim})"
        self.parts = {
            "dim": footage.dim,
            "vector": vector,
            "query": f"%(query)s::{vector}",
            "frames": tables.frames(MODEL).as_string(),
            "table": tables.index(MODEL, target.generation).as_string(),
            "moments": MOMENTS,
            "short": SHORTLIST,
        }

    def near(self, text: str, **parts: Any) -> str:
        return text.format(**self.parts | parts)

    def walk(self, wanted: str = "true", **parts: Any) -> str:
        return self.near(_WALK, rows=MOMENTS, wanted=wanted, **parts)

    def cut(self) -> Iterator[tuple[int, EmbeddingBatch, Moments]]:
        """Make each video again, and cut it as the index did; yield its id with it."""
        with self.database.connection() as connection:
            ids: dict[str, int] = dict(
                connection.execute("SELECT path, video_id FROM videos").fetchall()
            )
        for batch in self.footage:
            moments = cut_moments(
                batch.embeddings_ND,
                batch.frame_index_N,
                batch.time_seconds_N,
                threshold=self.threshold,
            )
            yield ids[batch.video], batch, moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50,000 frames")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--neighbours", type=float, default=0.97)
    parser.add_argument("--without", nargs="*", default=[], help="candidates to leave out")
    options = parser.parse_args()
    frames = 50_000 if options.quick else options.frames
    footage = Footage(frames, neighbours=options.neighbours)
    with tempfile.TemporaryDirectory(prefix="siglip-bench-") as home:
        Path(home).chmod(0o755)
        with open_database(DatabaseOptions.from_settings(settings_of(home))) as database:
            first_build(database, home, footage)
            collection = Collection(database, footage)
            candidates, cases = built(collection, options.without)
            truth = Truth(collection)
            cases += without_filter(collection, truth, candidates)
            cases += with_filters(collection, truth)
    print_report("candidates", cases, as_json=options.json)


def built(collection: Collection, without: Sequence[str]) -> tuple[list[Candidate], list[Case]]:
    """Build each candidate's table; return them with the bytes a frame and the seconds of each."""
    walk = collection.walk()
    statements = {
        "means": (None, collection.near(_BEST, moments=walk)),
        "centred": (
            centre,
            collection.near(_BEST, moments=collection.walk(table="candidate_centred")),
        ),
        "representatives": (
            represent,
            collection.near(
                _BEST,
                moments=collection.near(_REPRESENTATIVES, rows=REPRESENTATIVES * MOMENTS),
            ),
        ),
        "codes": (code, collection.near(_CODES, moments=walk)),
        "one_row": (put_in_one_row, collection.near(_ONE_ROW, moments=walk)),
        "scattered": (
            scatter,
            collection.near(_BEST, moments=walk, frames="candidate_scattered"),
        ),
    }
    candidates, cases = [], []
    for name, (build, statement) in statements.items():
        if name in without:
            continue
        candidates.append(Candidate(name, statement))
        if build is None:
            continue
        began = time.monotonic()
        with collection.database.autocommit() as connection:
            connection.execute("SET maintenance_work_mem = '2GB'")
            build(connection, collection)
            connection.execute(f"VACUUM ANALYZE candidate_{name}")
            [(size,)] = connection.execute(
                "SELECT pg_total_relation_size(%s::regclass)", [f"candidate_{name}"]
            ).fetchall()
        seconds = time.monotonic() - began
        log(f"{name}: built in {seconds:.0f} s, {size:,} bytes")
        cases += [
            Case(name=f"{name}_built", value=seconds, unit="seconds", better="lower"),
            Case(
                name=f"{name}_bytes_per_frame",
                value=size / collection.footage.frames,
                unit="bytes",
                better="lower",
                note="beside what is there",
            ),
        ]
    return candidates, cases


def graph(connection: Connection, table: str) -> None:
    connection.execute(
        f"CREATE INDEX ON {table} USING hnsw (embedding halfvec_ip_ops) "
        "WITH (m = 16, ef_construction = 200)"
    )


def centre(connection: Connection, collection: Collection) -> None:
    connection.execute(
        collection.near(
            """
            CREATE TABLE candidate_centred AS
            SELECT video_id, first_frame, last_frame,
                   (embedding - (SELECT avg(embedding) FROM {table}))::{vector} AS embedding
            FROM {table}
            """
        )
    )
    connection.execute("ALTER TABLE candidate_centred ALTER embedding SET STORAGE PLAIN")
    graph(connection, "candidate_centred")


def represent(connection: Connection, collection: Collection) -> None:
    connection.execute(
        collection.near(
            """
            CREATE TABLE candidate_representatives (
                video_id integer, first_frame integer, last_frame integer,
                embedding {vector} STORAGE PLAIN
            )
            """
        )
    )
    count = 0
    for video_id, batch, moments in collection.cut():
        bounds = [*moments.start_row_M, len(batch)]
        rows, chosen = [], []
        for moment, (start, end) in enumerate(itertools.pairwise(bounds)):
            some = representatives(batch.embeddings_ND[start:end])
            rows += [moment] * len(some)
            chosen += [start + one for one in some]
        with connection.transaction():
            copy_rows(
                connection,
                sql.Identifier("candidate_representatives"),
                {
                    "video_id": ("int4", video_id),
                    "first_frame": ("int4", moments.first_frame_M[rows]),
                    "last_frame": ("int4", moments.last_frame_M[rows]),
                },
                vector=("embedding", batch.embeddings_ND[chosen]),
            )
        count += len(rows)
    log(f"{count / collection.target.rows:.2f} representatives a moment")
    graph(connection, "candidate_representatives")


def representatives(frames_ND: FloatArray) -> list[int]:
    """Return the medoid, then in turn the frame that is farthest from all that are chosen."""
    cosines_NN = frames_ND @ frames_ND.T
    chosen = [int(cosines_NN.sum(axis=0).argmax())]
    while len(chosen) < REPRESENTATIVES:
        nearest_N = cosines_NN[chosen].max(axis=0)
        if nearest_N.min() >= NEAR_ONE:
            break
        chosen.append(int(nearest_N.argmin()))
    return chosen


def code(connection: Connection, collection: Collection) -> None:
    mean = picture_mean(connection, collection)
    connection.execute(
        collection.near(
            "CREATE TABLE candidate_codes AS SELECT m.video_id, m.first_frame, frames.* "
            + _EACH_FRAME,
            values=collection.near(
                "array_agg(f.frame_index) AS frame_indexes, "
                "array_agg(binary_quantize(f.embedding - '{mean}'::{vector})::bit({dim})) AS codes",
                mean=mean,
            ),
        )
    )
    connection.execute("ALTER TABLE candidate_codes ADD PRIMARY KEY (video_id, first_frame)")


def picture_mean(connection: Connection, collection: Collection) -> str:
    [(mean,)] = connection.execute(
        collection.near("SELECT avg(embedding)::text FROM {table}")
    ).fetchall()
    return str(mean)


def put_in_one_row(connection: Connection, collection: Collection) -> None:
    connection.execute(
        collection.near(
            """
            CREATE TABLE candidate_one_row (
                video_id integer, first_frame integer,
                embeddings {vector}[] STORAGE EXTERNAL, PRIMARY KEY (video_id, first_frame)
            )
            """
        )
    )
    connection.execute(
        collection.near(
            "INSERT INTO candidate_one_row SELECT m.video_id, m.first_frame, frames.* "
            + _EACH_FRAME,
            values="array_agg(f.embedding)",
        )
    )


def scatter(connection: Connection, collection: Collection) -> None:
    connection.execute(
        collection.near(
            "CREATE TABLE candidate_scattered AS SELECT * FROM {frames} ORDER BY random()"
        )
    )
    connection.execute("ALTER TABLE candidate_scattered ADD PRIMARY KEY (video_id, frame_index)")


class Truth:
    """The scores of every moment, each by its best frame."""

    def __init__(self, collection: Collection) -> None:
        queries_QD = rounded(np.concatenate(list(collection.queries.values())))
        scores, videos = [], []
        for video_id, batch, moments in collection.cut():
            of_frames_NQ = rounded(batch.embeddings_ND) @ queries_QD.T
            scores.append(np.maximum.reduceat(of_frames_NQ, moments.start_row_M, axis=0))
            videos.append(np.full(len(moments), video_id))
        self.scores_MQ = np.concatenate(scores)
        self.videos_M = np.concatenate(videos)
        self._modalities = list(collection.queries)
        assert len(self.videos_M) == collection.target.rows

    def nearest(self, modality: str, scope: Scope) -> FloatArray:
        """Return [Q, 10]: the ascending distances of the best moments in scope."""
        start = QUERIES * self._modalities.index(modality)
        scores_MQ = self.scores_MQ[:, start : start + QUERIES]
        if scope.video_ids is not None:
            scores_MQ = scores_MQ[np.isin(self.videos_M, scope.video_ids)]
        return -np.sort(np.partition(scores_MQ, -10, axis=0)[-10:], axis=0)[::-1].T


def rounded(vectors_ND: FloatArray) -> FloatArray:
    """Return vectors as the database rounds them: else the tenth best would count as missed."""
    return vectors_ND.astype(np.float16).astype(np.float32)


def without_filter(
    collection: Collection, truth: Truth, candidates: Sequence[Candidate]
) -> list[Case]:
    """Ask each candidate with rising ``ef_search``."""
    cases = []
    for ef_search in EF_SEARCH:
        with collection.database.snapshot() as connection:
            connection.execute(f"SET LOCAL hnsw.ef_search = {ef_search}")
            means = {
                "pictures": HalfVector.from_text(picture_mean(connection, collection)),
                "texts": HalfVector(collection.queries["texts"].mean(axis=0)),
            }
            for modality, queries_QD in collection.queries.items():
                values = {"mean": means[modality]}
                searches = {one.name: asks(connection, one.statement, values) for one in candidates}
                cases += in_turns(
                    searches,
                    queries_QD,
                    truth.nearest(modality, Scope()),
                    f"{modality}_ef_{ef_search}",
                    "means",
                )
    return cases


def with_filters(collection: Collection, truth: Truth) -> list[Case]:
    """Ask within random shares of the videos, in the ways that a filter can be applied."""
    with collection.database.connection() as connection:
        videos = connection.execute(
            "SELECT video_id, frames, moments FROM ingests WHERE model_id = %s ORDER BY 1", [MODEL]
        ).fetchall()
    cases = []
    for share in SHARES:
        scope = random_scope(videos, round(share * len(videos)))
        assert scope.video_ids is not None
        bits = np.zeros(max(row[0] for row in videos) + 1, bool)
        bits[scope.video_ids] = True
        values = scope.parameters() | {"bits": np.packbits(bits, bitorder="little").tobytes()}
        # Not beyond the end of the bits: a video may have come since.
        bitmap = "get_bit(%(bits)s::bytea, m.video_id) = 1"
        looked_up = scope.video_filter("m").as_string()
        listed = scope.video_condition("m").as_string()
        statements = {
            "all_moments_by_list": collection.near(_ALL, rows=MOMENTS, wanted=listed),
            "all_moments_looked_up": collection.near(_ALL, rows=MOMENTS, wanted=looked_up),
            "all_moments_by_bitmap": collection.near(_ALL, rows=MOMENTS, wanted=bitmap),
            "iterative_walk_looked_up": collection.walk(wanted=looked_up),
            "iterative_walk_by_bitmap": collection.walk(wanted=bitmap),
        }
        for modality, queries_QD in collection.queries.items():
            kind = choose_kind(collection.target, scope)
            effort = effort_of(kind, collection.target, queries_QD[0])
            with ExitStack() as stack:
                own, others = (
                    stack.enter_context(collection.database.snapshot()) for _ in range(2)
                )
                others.execute(f"SET LOCAL hnsw.ef_search = {min(1000, 4 * effort.ef_search)}")
                others.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
                others.execute("SET LOCAL hnsw.max_scan_tuples = 200000")
                kind = set_up(own, kind, collection.target, scope, effort=effort, rows=MOMENTS)
                near = kind.near(collection.target, rows=MOMENTS, scope=scope, best_of_moment=True)
                best = sql.SQL(
                    "SELECT video_id, frame_index, distance FROM ({}) n ORDER BY 3 LIMIT 10"
                ).format(near)
                searches = {"program": asks(own, best.as_string(), values)}
                for name, moments in statements.items():
                    statement = collection.near(_BEST, moments=moments)
                    searches[name] = asks(others, statement, values)
                cases += in_turns(
                    searches,
                    queries_QD,
                    truth.nearest(modality, scope),
                    f"{modality}_in_{share:g}",
                    "program",
                )
    return cases


Search = Callable[[FloatArray], list[float]]


def asks(connection: Connection, statement: str, values: dict[str, Any]) -> Search:
    """Return a search that keeps its plan, as the program's do."""
    text = statement.encode()

    def search(query_D: FloatArray) -> list[float]:
        rows = connection.execute(
            text, values | {"query": HalfVector(query_D)}, prepare=True, binary=True
        ).fetchall()
        return [row[2] for row in rows]

    return search


def in_turns(
    searches: dict[str, Search],
    queries_QD: FloatArray,
    truth_QK: FloatArray,
    case: str,
    reference: str,
) -> list[Case]:
    """Return recall@10 and p50 of each search, query by query in turns."""
    for search in searches.values():
        for query_D in queries_QD[:6]:  # rows are in memory, and the plan is kept
            search(query_D)
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    recalls: dict[str, list[float]] = {name: [] for name in searches}
    for turn, (query_D, truth_K) in enumerate(zip(queries_QD, truth_QK, strict=True)):
        # The first reads rows that the others find in memory.
        first = turn % len(searches)
        for name, search in [*searches.items(), *searches.items()][first : first + len(searches)]:
            began = time.perf_counter()
            found = search(query_D)
            seconds[name].append(time.perf_counter() - began)
            recalls[name].append(found_share(truth_K, found, 10))
    p50 = {name: 1000 * float(np.median(of)) for name, of in seconds.items()}
    cases = [
        Case(
            name=f"{name}_{case}",
            value=p50[name],
            unit="ms",
            reference=reference,
            reference_value=p50[reference],
            better="lower",
            note=f"recall@10 {np.mean(recalls[name]):.3f}, "
            f"p99 {1000 * np.percentile(seconds[name], 99):.1f} ms",
        )
        for name in searches
    ]
    for one in cases:
        log(f"{one.name} {one.value:.2f} ms, {one.ratio:.2f} of {reference} ({one.note})")
    return cases


if __name__ == "__main__":
    main()
