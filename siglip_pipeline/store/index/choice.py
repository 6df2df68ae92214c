"""Choose the kind of index by how varied the footage is, and advise where one was refused."""

from siglip_pipeline.store.counts import StoredCounts

AUTO = "auto"
COMPACT, VARIED = "moments", "hnsw"

# Frames per moment from which moments have at least the same recall, in less space: see
# docs/decisions/0040-kind-by-compactness.md.
FRAMES_PER_MOMENT = 1.5
# The live index keeps its kind until the footage is clearly on the other side of the limit, so that
# a few uploads do not switch a collection back and forth.
MARGIN = 1.25


def choose_kind_for(stored: StoredCounts, live: str | None) -> tuple[str, str]:
    """Return the kind, and the reason as a sentence.

    Args:
        stored: the model's counts, with moments cut at the configured threshold.
        live: the kind of the live index; None if there is none.
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


def way_out(refused: str) -> str:
    """Say, in a sentence, what to do where the recall check refused an index of that kind."""
    lower = "a lower SIGLIP_INDEX_MIN_RECALL publishes an index that misses more"
    if refused == COMPACT:
        return f"SIGLIP_INDEX_KIND=exact misses nothing and is slow in a large collection; {lower}"
    return (
        f"set SIGLIP_INDEX_KIND={COMPACT}: it finds more where many pictures are alike, as of "
        f"fixed cameras, copies, or clips that begin and end alike; {lower}"
    )
