"""The kinds of similarity index, behind one interface; docs/indexes.md says which to choose."""

from siglip_pipeline.errors import SimilarityIndexError
from siglip_pipeline.store.kinds.all_frames_index import Hnsw, IvfFlat
from siglip_pipeline.store.kinds.base import Generation, IndexKind, Scope
from siglip_pipeline.store.kinds.exact import Exact
from siglip_pipeline.store.kinds.moment_index import MomentIndex
from siglip_pipeline.store.kinds.quantized import HnswBinary

KINDS: dict[str, IndexKind] = {
    kind.name: kind for kind in (MomentIndex(), Hnsw(), HnswBinary(), IvfFlat(), Exact())
}

__all__ = ["KINDS", "Generation", "IndexKind", "Scope", "index_kind"]


def index_kind(name: str) -> IndexKind:
    """Return the kind of that name.

    Raises:
        SimilarityIndexError: no such kind; names those that exist.
    """
    if name not in KINDS:
        raise SimilarityIndexError(f"no index kind {name!r}; there are: {', '.join(KINDS)}")
    return KINDS[name]
