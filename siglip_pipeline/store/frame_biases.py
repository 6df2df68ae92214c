"""Estimate how near each frame is to queries in general: its bias, for SIGLIP_RANKING=hubness.

Some frames are near to many queries, whatever these ask for. By nearest-neighbour normalisation
(arXiv 2410.24114) the bias of a frame is the mean of its highest cosines with a bank of queries,
here the texts of the recall check. Shapes: F frames, B texts of the bank, D dimensions.
"""

import hashlib
from typing import Final

import numpy as np
from psycopg import sql

from siglip_pipeline.errors import SimilarityIndexError
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Connection, Database

NEAREST: Final = 16
"""A bias is the mean of so many of the highest cosines."""

_BANK = """
SELECT embedding FROM recall_queries
WHERE model_id = %s AND modality = 'text' AND label NOT LIKE 'like %%' ORDER BY position
"""
_DUE = """
SELECT i.video_id, i.ingest_id FROM ingests i
LEFT JOIN frame_biases b USING (model_id, video_id)
WHERE i.model_id = %s AND (b.ingest_id IS DISTINCT FROM i.ingest_id OR b.bank <> %s)
ORDER BY i.video_id
"""
# A video that was removed meanwhile gets none; one that is being removed is waited for.
_STORE = """
INSERT INTO frame_biases (model_id, video_id, ingest_id, bank, frame_index, bias)
SELECT %s, video_id, %s, %s, %s::integer[], %s::real[]
FROM videos WHERE video_id = %s FOR KEY SHARE
ON CONFLICT (model_id, video_id) DO UPDATE SET ingest_id = excluded.ingest_id,
    bank = excluded.bank, frame_index = excluded.frame_index, bias = excluded.bias
"""


def update_frame_biases(database: Database, model_id: int) -> int:
    """Estimate the biases of videos that are new, changed or of another bank; return how many.

    Raises:
        SimilarityIndexError: no vectors of texts are stored for the model.
    """
    with database.connection() as connection:
        rows = connection.cursor(binary=True).execute(_BANK, [model_id]).fetchall()
        if not rows:
            raise SimilarityIndexError(
                "SIGLIP_RANKING=hubness needs vectors of the recall check's texts, which this "
                "model has not; build the index with its text tower"
            )
        bank_BD = np.stack([vector.to_numpy() for (vector,) in rows]).astype(np.float32)
        digest = hashlib.sha256(bank_BD.tobytes()).hexdigest()[:16]
        due = connection.execute(_DUE, [model_id, digest]).fetchall()
    for video_id, ingest_id in due:
        with database.connection() as connection:
            frames, vectors_FD = _read(connection, model_id, video_id)
            if not frames:  # it was removed meanwhile
                continue
            biases = biases_of(vectors_FD, bank_BD).tolist()
            connection.execute(_STORE, [model_id, ingest_id, digest, frames, biases, video_id])
    return len(due)


def biases_of(vectors_FD: FloatArray, bank_BD: FloatArray) -> FloatArray:
    """Return the bias [F] of frames: the mean of their highest cosines with a bank of queries."""
    cosines_FB = vectors_FD @ bank_BD.T
    nearest = min(NEAREST, len(bank_BD))
    highest_FN = np.partition(cosines_FB, -nearest, axis=1)[:, -nearest:]
    biases_F: FloatArray = highest_FN.mean(axis=1)
    return biases_F


def _read(connection: Connection, model_id: int, video_id: int) -> tuple[list[int], FloatArray]:
    query = sql.SQL(
        "SELECT frame_index, embedding FROM {} WHERE video_id = %s ORDER BY frame_index"
    ).format(tables.frames(model_id))
    rows = connection.cursor(binary=True).execute(query, [video_id]).fetchall()
    vectors = [vector.to_numpy() for _, vector in rows]
    return [frame for frame, _ in rows], np.array(vectors, np.float32)
