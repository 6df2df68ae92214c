"""``auto``: the kind of index that the footage at hand asks for."""

from siglip_pipeline.store.counts import StoredCounts

AUTO = "auto"
COMPACT, VARIED = "moments", "hnsw"

# Frames a moment from which moments find at least as much, in less space: see
# docs/decisions/0040-kind-by-compactness.md.
FRAMES_PER_MOMENT = 1.5
# A live index of either kind stays until the footage is clearly on the other side, so that a few
# uploads do not turn a collection back and forth.
MARGIN = 1.25


def choose_kind_for(stored: StoredCounts, live: str | None) -> tuple[str, str]:
    """The kind, and why, in a sentence.

    Args:
        stored: of the model, its moments cut at the threshold that is set.
        live: kind of the live index; None: there is none.
    """
    compactness = stored.frames / max(1, stored.moments)
    limit = FRAMES_PER_MOMENT
    if live == COMPACT:
        limit /= MARGIN
    elif live == VARIED:
        limit *= MARGIN
    kind = COMPACT if compactness >= limit or not stored.frames else VARIED
    side = "at least" if kind == COMPACT else "less than"
    return kind, f"auto: {kind}, for {compactness:.1f} frames a moment are {side} {limit:.1f}"
