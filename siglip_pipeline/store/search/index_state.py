"""Name the state of a model's index: equal names give equal answers to equal queries."""

from dataclasses import dataclass

from siglip_pipeline.store.database import Database

_STATE = """
SELECT m.model_key, m.active_generation, coalesce(max(g.ingest_id), 0),
       count(g.video_id) FILTER (WHERE g.ingest_id IS NULL)
FROM models m
LEFT JOIN generation_videos g ON g.model_id = m.model_id AND g.generation = m.active_generation
WHERE m.model_key = %s
GROUP BY m.model_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexState:
    """What an answer depends on, besides the query and the settings."""

    model_key: str
    generation: int | None
    """The published index generation."""
    loads: int
    """The last load of a video that the generation holds."""
    removed: int
    """Videos that were removed since it was built."""

    def __str__(self) -> str:
        return f"{self.model_key}@{self.generation or 0}.{self.loads}.{self.removed}"


def index_state(database: Database, model_key: str) -> IndexState | None:
    """Return the state of a model's index; None if there is no such model."""
    with database.connection() as connection:
        row = connection.execute(_STATE, [model_key]).fetchone()
    if row is None:
        return None
    return IndexState(model_key=row[0], generation=row[1], loads=row[2], removed=row[3])
