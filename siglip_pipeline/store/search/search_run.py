"""One search: how far to look, and when what was found is the whole answer."""

import numpy as np

from siglip_pipeline.hits import Hit, SearchRequest
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Connection
from siglip_pipeline.store.kinds import Generation, IndexKind, Scope, index_kind
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.execution import apply_settings, choose_kind, ef_search_of
from siglip_pipeline.store.search.near_moments import NearMoments, near_moments

ROWS_MAX = 20_000
# Of an exact search: frames of the best moments crowd out the others.
EXACT_ROWS = 256
_APART_ROWS, _GROWN_ROWS, _CROWDED_ROWS = 2, 4, 6
"""Moments to look at for each hit that is wanted: where each is a hit of its own, where neighbours
are one hit, and where there are few videos, so that what is near is nearly all of some."""
_CROWDED = 100
"""Moments of the index for each hit that is wanted, under which it is crowded."""


def find_hits(
    connection: Connection,
    model: ModelRow,
    target: Generation,
    scope: Scope,
    request: SearchRequest,
    *,
    must_be_active: bool = False,
) -> list[Hit] | None:
    """Return the best ``k`` hits, by way of the index, looking further until they are complete.

    Each statement tells the whole answer or nothing: what is returned is of one snapshot.

    Args:
        connection: with or without a transaction.
        model: the one that the query was embedded with.
        target: the generation to search.
        scope: what may be found.
        request: what is looked for.
        must_be_active: search only if the model is the one that search answers with.

    Returns:
        Hits by falling score; ties by path, then frame. None where the generation is not the live
        one any more, or not the active model's although it must be.
    """
    kind = choose_kind(target, scope)
    rows = _rows_at_first(kind, target, request)
    while True:
        ef_search = request.ef_search or ef_search_of(kind, target)
        apply_settings(connection, kind, rows=rows, scope=scope, ef_search=ef_search)
        near = near_moments(connection, target, kind, scope, request, rows=rows)
        if near.live is None or (must_be_active and not near.live):
            return None
        exhausted = near.looked_at < rows
        if (
            len(near.hits) == request.k
            or near.least_score < request.min_score
            or (exhausted and kind.name == "exact")
        ):
            return _hits(near, model)
        if exhausted or rows >= ROWS_MAX:
            # The index has no more to say, but only looking everywhere tells that it is all.
            kind = index_kind("exact")
        # Looking everywhere costs the same however much of it is wanted.
        rows *= 4 if kind.name == "exact" else 2


def _rows_at_first(kind: IndexKind, target: Generation, request: SearchRequest) -> int:
    exact = kind.name == "exact"
    least = EXACT_ROWS if exact else request.ef_search or ef_search_of(kind, target)
    each = _CROWDED_ROWS if target.rows < _CROWDED * request.k else _GROWN_ROWS
    if request.within < 0:
        each = _APART_ROWS
    return max(each * request.k, least)


def _hits(near: NearMoments, model: ModelRow) -> list[Hit]:
    scores_K = np.array([row[4] for row in near.hits])
    probabilities_K = probability(scores_K, model.logit_scale, model.logit_bias).tolist()
    return [
        Hit(
            video=video,
            video_id=video_id,
            time_seconds=time_seconds,
            frame_index=frame_index,
            score=score,
            probability=fits,
            start_seconds=start,
            end_seconds=end,
        )
        for (video, video_id, time_seconds, frame_index, score, start, end), fits in zip(
            near.hits, probabilities_K, strict=True
        )
    ]
