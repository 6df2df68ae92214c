"""Receipts of answers: proofs by an exact search, and pins that tell whether one still holds."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Hit, Proof, Reproduction, SearchFilter
from siglip_pipeline.search.query_vectors import QueryVectors
from siglip_pipeline.search.results import HitFinder
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.index_state import IndexState, index_state

TIE = 1e-5
"""Hits whose scores differ by less are equally good: rounding decides which is shown."""
_PIN = re.compile(r"(?P<key>.+)@(?P<generation>\d{1,9})\.(?P<loads>\d{1,18})\.(?P<removed>\d{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer shall bring along."""

    prove: bool = False
    """Also search exactly, and say what the index missed."""
    pin: str | None = None
    """Say whether the answer is still that of this state of the index."""
    permalink: bool = False
    """Name the state of the index."""


def prove_hits(
    finder: HitFinder, model: ModelRow, vectors: QueryVectors, k: int, filter: SearchFilter
) -> tuple[tuple[Hit, ...], Proof]:
    """Search by the index, then exactly; return the hits of the index, and what it missed.

    Raises:
        ActiveModelChangedError: the model is not the active one any more.
    """
    began = time.perf_counter()
    found = finder.find(model, vectors, k, filter)
    between = time.perf_counter()
    exact = finder.find(model, vectors, k, filter, exact=True)
    ended = time.perf_counter()
    missed = _missed_hits(found, exact)
    return found, Proof(
        complete=not missed,
        recall=1 - len(missed) / len(exact) if exact else 1.0,
        missed=missed,
        index_seconds=between - began,
        exact_seconds=ended - between,
    )


def _missed_hits(found: Sequence[Hit], exact: Sequence[Hit]) -> tuple[Hit, ...]:
    """Return the hits of an exact search that the index has neither found nor matched in score."""
    shown = {(hit.video_id, hit.frame_index) for hit in found}
    # Where the index returned as many hits, one that is no better than its last is a tie.
    last = found[-1].ranked_by + TIE if len(found) == len(exact) and found else -2.0
    return tuple(
        hit
        for hit in exact
        if (hit.video_id, hit.frame_index) not in shown and hit.ranked_by > last
    )


def parse_pin(pin: str) -> IndexState:
    """Return the state that a pin names.

    Raises:
        QueryError: it is not of the form MODEL_KEY@GENERATION.LOADS.REMOVED.
    """
    match = _PIN.fullmatch(pin)
    if match is None:
        raise QueryError(
            f"pin={pin[:80]!r} is not MODEL_KEY@GENERATION.LOADS.REMOVED; copy it from a permalink"
        )
    return IndexState(
        model_key=match["key"],
        generation=int(match["generation"]) or None,
        loads=int(match["loads"]),
        removed=int(match["removed"]),
    )


def reproduction(database: Database, pin: str) -> Reproduction:
    """Say whether answers are still those of a pinned state.

    Raises:
        QueryError: the pin cannot be read.
    """
    then = parse_pin(pin)
    now = index_state(database, then.model_key)
    reason = None
    if now is None:
        reason = f"model {then.model_key} was dropped"
    elif now.generation != then.generation:
        reason = f"index generation {then.generation} was replaced by {now.generation}"
    elif now.loads != then.loads or now.removed != then.removed:
        reason = "videos were added, replaced or removed since"
    return Reproduction(same=reason is None, reason=reason)
