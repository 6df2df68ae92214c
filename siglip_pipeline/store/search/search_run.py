"""Run one search: read more rows of the index until the answer is complete."""

import numpy as np

from siglip_pipeline.hits import Hit, SearchRequest
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.kinds.effort import Effort
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.execution import choose_kind, effort_of, set_up
from siglip_pipeline.store.search.near_moments import NearMoments, near_moments

ROWS_MAX = 20_000
# An exact search returns frames, so those of the best moments displace other moments.
EXACT_ROWS = 256
_APART_ROWS, GROWN_ROWS, _CROWDED_ROWS = 2, 4, 6
"""Moments to read per requested hit: where each moment is a hit, where neighbours are one hit, and
in a small index, where the nearest moments are mostly of the same few videos."""
_CROWDED = 100
"""An index with fewer moments than this per requested hit counts as small."""


def find_hits(
    connection: Connection,
    model: ModelRow,
    target: Generation,
    scope: Scope,
    request: SearchRequest,
    *,
    must_be_active: bool = False,
) -> list[Hit] | None:
    """Return the best ``k`` hits; read more rows of the index until they are complete.

    All hits come from the last statement, so they are of one snapshot.

    Args:
        connection: with or without a transaction.
        model: the model that the query was embedded with.
        target: the generation to search.
        scope: what may be found.
        request: the query vectors, the filter and the limits.
        must_be_active: search only if the model is the one that search answers with.

    Returns:
        Hits by falling score; ties by path, then frame. None if the generation is not live any
        more, or if the model must be active and is not.
    """
    kind = index_kind("exact") if request.exact else choose_kind(target, scope)
    effort = effort_of(kind, target, request.query_QD, request.ef_search)
    kept, rows = _rows_at_first(kind, target, request, effort)
    while True:
        kind = set_up(connection, kind, target, scope, effort=effort, rows=rows)
        near = near_moments(connection, target, kind, scope, request, rows=rows, kept=kept)
        if near.live is None or (must_be_active and not near.live):
            return None
        exhausted = near.rows_read < rows
        if (
            len(near.hits) == request.k
            or near.least_score < request.min_score
            or (exhausted and kind.name == "exact")
        ):
            return _as_hits(near, model)
        if kept < near.rows_read:
            kept = near.rows_read  # which may be more than were asked for
            continue
        if exhausted or rows >= ROWS_MAX:
            # The index returns no more rows; an exact search finds what it missed.
            kind = index_kind("exact")
        # An exact search costs nearly the same for any number of rows.
        rows *= 4 if kind.name == "exact" else 2
        kept = rows


def _rows_at_first(
    kind: IndexKind, target: Generation, request: SearchRequest, effort: Effort
) -> tuple[int, int]:
    """Return how many rows to keep, and how many to read: the index needs more to be accurate."""
    each = _CROWDED_ROWS if target.rows < _CROWDED * request.k else GROWN_ROWS
    if request.within < 0:
        each = _APART_ROWS
    kept = each * request.k
    if kind.name == "exact":
        rows = max(kept, EXACT_ROWS)
    elif request.filter.max_per_video is None:
        rows = max(kept, effort.rows)
    else:  # rows of one video displace others
        rows = max(kept, effort.ef_search)
    # Rows of a moment displace others, too.
    all_count = kind.groups_frames and request.filter.max_per_video is None
    return (kept if all_count else rows), rows


def _as_hits(near: NearMoments, model: ModelRow) -> list[Hit]:
    """Return the hits of a statement; the probability is that of the score."""
    scores_K = np.array([row[4] for row in near.hits])
    probabilities_K = probability(scores_K, model.logit_scale, model.logit_bias).tolist()
    return [
        Hit(
            video=video,
            video_id=video_id,
            time_seconds=time_seconds,
            frame_index=frame_index,
            score=score,
            probability=p,
            start_seconds=start,
            end_seconds=end,
            media_time_seconds=media,
        )
        for (video, video_id, time_seconds, frame_index, score, start, end, media), p in zip(
            near.hits, probabilities_K, strict=True
        )
    ]
