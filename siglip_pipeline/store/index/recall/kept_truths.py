"""Keep the truths of recall checks, so that the next check reads only what is new.

A truth holds as long as it was found with the same queries, and every load that it names is still
there: frames of a load never change.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.index.recall.queries import Query
from siglip_pipeline.store.index.recall.truth import Truth

_READ = """
SELECT share, video_ids, ingest_ids, distances, found_in FROM recall_truths
WHERE model_id = %s AND queries = %s
"""

_KEEP = """
INSERT INTO recall_truths (model_id, share, queries, video_ids, ingest_ids, distances, found_in)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (model_id, share) DO UPDATE SET queries = excluded.queries,
    video_ids = excluded.video_ids, ingest_ids = excluded.ingest_ids,
    distances = excluded.distances, found_in = excluded.found_in
"""


def read_truths(
    connection: Connection, model_id: int, queries: Sequence[Query]
) -> dict[float, Truth]:
    """Return the truths that were found with exactly these queries, by share of videos."""
    rows = connection.execute(_READ, [model_id, _digest(queries)]).fetchall()
    shape = (len(queries), -1)
    return {
        share: Truth(
            loads=dict(zip(video_ids, ingest_ids, strict=True)),
            distances_QK=np.frombuffer(distances, "<f4").reshape(shape),
            videos_QK=np.frombuffer(found_in, "<i4").reshape(shape),
        )
        for share, video_ids, ingest_ids, distances, found_in in rows
    }


def keep_truths(
    database: Database, model_id: int, queries: Sequence[Query], truths: dict[float, Truth]
) -> None:
    """Store truths in place of older ones of the same shares."""
    digest = _digest(queries)
    with database.connection() as connection:
        for share, truth in truths.items():
            connection.execute(
                _KEEP,
                [
                    *(model_id, share, digest, list(truth.loads), list(truth.loads.values())),
                    truth.distances_QK.astype("<f4").tobytes(),
                    truth.videos_QK.astype("<i4").tobytes(),
                ],
            )


def _digest(queries: Sequence[Query]) -> str:
    """Return a digest of what decides the truth: rounded vectors, and frames that do not count."""
    digest = hashlib.sha256()
    for query in queries:
        digest.update(query.embedding_D.astype("<f2").tobytes())
        digest.update(repr(query.held_out).encode())
    return digest.hexdigest()
