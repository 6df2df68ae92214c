"""The shares of videos that the filters of a recall check let through."""

from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, Scope

SHARES = (0.001, 0.01, 0.05, 0.3)
GOLDEN_RATIO = (1 + 5**0.5) / 2

_OF_GENERATION = """
SELECT g.video_id, i.frames, i.moments
FROM generation_videos g JOIN ingests i USING (model_id, video_id)
WHERE g.model_id = %s AND g.generation = %s AND g.ingest_id IS NOT NULL
ORDER BY g.video_id
"""

_STORED = """
SELECT video_id, frames, moments FROM ingests WHERE model_id = %s ORDER BY video_id
"""


def scopes_of(connection: Connection, target: Generation) -> dict[float, Scope]:
    """Return the scope of all videos of a generation, and of shares of them."""
    rows = connection.execute(_OF_GENERATION, [target.model_id, target.generation]).fetchall()
    return _scopes(rows)


def scopes_to_come(connection: Connection, target: Generation) -> dict[float, Scope]:
    """Return the scopes of a generation that is being filled with all that is stored."""
    return _scopes(connection.execute(_STORED, [target.model_id]).fetchall())


def _scopes(rows: list[tuple[int, int, int]]) -> dict[float, Scope]:
    """Return scopes by share of the given videos, with their frames and moments.

    A share keeps its videos as others are added, so that its truth can be kept: multiples of the
    golden ratio spread the ids evenly over the numbers from 0 to 1.
    """
    places = sorted((row[0] * GOLDEN_RATIO % 1, row) for row in rows)
    scopes = {1.0: Scope()}
    counts = {len(rows)}
    for share in SHARES:
        picked = [row for place, row in places if place < share] or [row for _, row in places[:1]]
        if len(picked) in counts:  # with few videos, two shares may be the same
            continue
        counts.add(len(picked))
        scopes[share] = Scope(
            video_ids=[row[0] for row in picked],
            frames=sum(row[1] for row in picked),
            moments=sum(row[2] for row in picked),
        )
    return scopes
