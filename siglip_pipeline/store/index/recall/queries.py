"""The queries of the recall check: drawn once per model from a seed, then stored.

Results of different days are comparable only if the queries stay the same. They are drawn again
when the collection has doubled, their frames are gone, or other texts are given. A small collection
has fewer: to embed 200 texts would take most of the time of its first index.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pgvector import HalfVector
from psycopg import sql

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store import counts, tables
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.kinds.modality import Modality
from siglip_pipeline.store.models import ModelRow

EmbedTexts = Callable[[Sequence[str]], FloatArray]

QUERIES = 200
FRAMES_PER_QUERY = 10
"""A query looks for its ten nearest frames: more queries than this look for the same again."""
LEAST_QUERIES = 20
SEED = 20_250_117

_SUBJECTS = (
    """
a person, a child, two people talking, a crowd, a dog, a cat, a bird, a car, a train, a boat,
an airplane, a bicycle, a house, a tree, a flower, food, a red circle, a blue square, written words,
a map, a hand, a face
""".replace("\n", " ")
    .strip()
    .split(", ")
)
_SCENES = (
    """
on a street, by the sea, in a forest, in a kitchen, in an office, at night, in the snow, on a stage,
in a studio, seen from above, close up, on a screen
""".replace("\n", " ")
    .strip()
    .split(", ")
)
MADE_TEXTS = tuple(f"{subject} {scene}" for subject, scene in itertools.product(_SUBJECTS, _SCENES))

# Cosine of a made text vector with its picture; true pairs of SigLIP have a similar one.
LIKE_TEXT = 0.15

_QUERIES = """
SELECT q.modality, q.label, q.embedding, q.video_id, q.frame_index, q.sampled_of
FROM recall_queries q
WHERE q.model_id = %s
  AND (q.modality = 'text' OR EXISTS (
      SELECT FROM {} f WHERE f.video_id = q.video_id AND f.frame_index = q.frame_index
  ))
ORDER BY q.modality, q.position
"""

_INSERT = """
INSERT INTO recall_queries (model_id, modality, position, label, video_id, frame_index, sampled_of,
                            embedding)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""


TIE = 1e-5
"""Two frames whose inner products differ by less than this rounding error are equally near."""
ALIKE = 1e-3
"""The same for frames of one picture that many videos show, each coded a little differently: the
tolerance of ann-benchmarks (``epsilon`` of its recall), which has it for all queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of the check."""

    modality: Modality
    label: str
    """A frame (``path@frame``) or a text, to be read by people."""
    embedding_D: FloatArray
    held_out: tuple[int, int] | None = None
    """(video_id, frame_index) of a picture query, which is not counted as a result."""
    tie: float = TIE
    """How much farther than the last of the nearest frames one may be that counts as found."""

    @property
    def made(self) -> bool:
        """Return whether this is a text-like vector made from a picture, without a text tower."""
        return self.modality == "text" and self.label.startswith("like ")


def fitting(count: int, frames: int) -> int:
    """Return how many queries of a modality a collection has: ``count``, or fewer if small."""
    return min(count, max(LEAST_QUERIES, frames // FRAMES_PER_QUERY))


def prepare_queries(
    database: Database,
    model: ModelRow,
    *,
    texts: Sequence[str] = (),
    embed_texts: EmbedTexts | None = None,
    count: int = QUERIES,
) -> list[Query]:
    """Return the stored queries of a model; draw them if needed.

    Args:
        database: holds the frames and the queries.
        model: the model of the vectors.
        texts: the user's queries, all of which are used; generated ones fill them up.
        embed_texts: the model's text tower; None to make text-like vectors from pictures.
        count: the number of queries of each modality; fewer in a small collection.
    """
    with database.connection() as connection:
        frames = counts.stored(connection, model.model_id).frames
        if frames == 0:
            return []
        kept, drawn_of = _read(connection, model.model_id)
        pictures = [query for query in kept if query.modality == "picture"]
        written = [query for query in kept if query.modality == "text"]
        if frames >= 2 * drawn_of or len(pictures) < min(fitting(count, drawn_of), frames):
            drawn_of = frames
            pictures = _draw_pictures(connection, model, fitting(count, drawn_of))
            _keep(connection, model.model_id, pictures, drawn_of)
            written = [query for query in written if not query.made]
        if embed_texts is None:
            if not written:
                written = _make_text_like(pictures, fitting(count, drawn_of))
                _keep(connection, model.model_id, written, drawn_of)
        else:
            labels = _labels(texts, fitting(count, drawn_of))
            if [query.label for query in written] != labels:
                written = _embed(labels, written, embed_texts)
                _keep(connection, model.model_id, written, drawn_of)
    return [*pictures, *written]


def _embed(labels: Sequence[str], kept: Sequence[Query], embed_texts: EmbedTexts) -> list[Query]:
    """Return text queries; only those that are not kept are embedded."""
    known = {query.label: query for query in kept if not query.made}
    missing = [label for label in labels if label not in known]
    if missing:
        known |= {
            label: Query(modality="text", label=label, embedding_D=vector_D)
            for label, vector_D in zip(missing, embed_texts(missing), strict=True)
        }
    return [known[label] for label in labels]


def _labels(texts: Sequence[str], count: int) -> list[str]:
    """Return the user's texts, filled up to ``count`` with generated ones."""
    given = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    order = np.random.default_rng(SEED).permutation(len(MADE_TEXTS))
    made = [MADE_TEXTS[i] for i in order if MADE_TEXTS[i] not in given]
    return given + made[: max(0, count - len(given))]


def _read(connection: Connection, model_id: int) -> tuple[list[Query], int]:
    """Return the stored queries, and how many frames there were when the pictures were drawn.

    Pictures whose frame is gone are left out.
    """
    rows = (
        connection.cursor(binary=True)
        .execute(sql.SQL(_QUERIES).format(tables.frames(model_id)), [model_id])
        .fetchall()
    )
    queries = [
        Query(
            modality=modality,
            label=label,
            embedding_D=vector.to_numpy().astype(np.float32),
            held_out=None if video_id is None else (video_id, frame_index),
        )
        for modality, label, vector, video_id, frame_index, _ in rows
    ]
    return queries, min((row[5] for row in rows if row[0] == "picture"), default=0)


def _draw_pictures(connection: Connection, model: ModelRow, count: int) -> list[Query]:
    """Draw frames uniformly at random."""
    videos = connection.execute(
        """
        SELECT video_id, path, i.frames FROM ingests i JOIN videos USING (video_id)
        WHERE model_id = %s AND i.frames > 0 ORDER BY path
        """,
        [model.model_id],
    ).fetchall()
    ends = np.cumsum([frames for _, _, frames in videos])
    rng = np.random.default_rng(SEED)
    picks = np.sort(rng.choice(ends[-1], size=min(count, int(ends[-1])), replace=False))
    statement = sql.SQL(
        """
        SELECT frame_index, embedding FROM {} WHERE video_id = %s
        ORDER BY frame_index OFFSET %s LIMIT 1
        """
    ).format(tables.frames(model.model_id))
    queries = []
    for pick in picks:
        which = int(np.searchsorted(ends, pick, side="right"))
        video_id, path, frames = videos[which]
        offset = int(pick - (ends[which] - frames))
        row = connection.cursor(binary=True).execute(statement, [video_id, offset]).fetchone()
        if row is None:
            continue
        queries.append(
            Query(
                modality="picture",
                label=f"{path}@{row[0]}",
                embedding_D=row[1].to_numpy().astype(np.float32),
                held_out=(video_id, row[0]),
            )
        )
    return [queries[i] for i in rng.permutation(len(queries))]


def _make_text_like(pictures: Sequence[Query], count: int) -> list[Query]:
    """Make vectors that relate to pictures as text does: far away, in one common direction."""
    pictures_ND = np.array([query.embedding_D for query in pictures])
    rng = np.random.default_rng(SEED + 1)
    mean_D = pictures_ND.mean(axis=0)
    gap_D = rng.standard_normal(pictures_ND.shape[1])
    gap_D -= (gap_D @ mean_D) / (mean_D @ mean_D) * mean_D
    gap_D /= np.linalg.norm(gap_D)
    queries = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        noise_D = rng.standard_normal(len(gap_D)) * (0.5 * LIKE_TEXT / np.sqrt(len(gap_D)))
        vector_D = LIKE_TEXT * picture.embedding_D + noise_D + gap_D
        vector_D /= np.linalg.norm(vector_D)
        queries.append(
            Query(
                modality="text",
                label=f"like {picture.label}",
                embedding_D=vector_D.astype(np.float32),
            )
        )
    return queries


def _keep(connection: Connection, model_id: int, queries: Sequence[Query], sampled_of: int) -> None:
    connection.execute(
        "DELETE FROM recall_queries WHERE model_id = %s AND modality = %s",
        [model_id, queries[0].modality],
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            _INSERT,
            [
                (
                    model_id,
                    query.modality,
                    i,
                    query.label,
                    query.held_out and query.held_out[0],
                    query.held_out and query.held_out[1],
                    sampled_of,
                    HalfVector(query.embedding_D),
                )
                for i, query in enumerate(queries)
            ],
        )
