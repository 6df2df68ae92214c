"""The mean vectors of texts and of pictures, from the queries of the recall check."""

import numpy as np

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Database

_MEANS = """
SELECT modality, avg(embedding) FROM recall_queries
WHERE model_id = %s AND (modality = 'picture' OR label NOT LIKE 'like %%')
GROUP BY modality
"""


def modality_means(database: Database, model_id: int) -> dict[str, FloatArray]:
    """Return the mean unit vectors [D] of ``text`` and ``picture``, where queries are stored.

    Texts that were made from pictures, without a text tower, do not count.
    """
    with database.connection() as connection:
        rows = connection.execute(_MEANS, [model_id]).fetchall()
    return {modality: vector.to_numpy().astype(np.float32) for modality, vector in rows}
