"""SigLIP embeddings and what can be computed from them.

Owns every use of torch and transformers: checkpoints, preprocessing, the engine. Importing this
package costs nothing; the model lives in :mod:`.model` and :mod:`.embeddings`, which
are imported where a model is needed. Imports `records`, `text`, `files` and `errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siglip_pipeline.siglip.similarity import cosine_similarity, find_similar_frames

__all__ = ["cosine_similarity", "find_similar_frames"]


def __getattr__(name: str) -> Any:
    """Return a function of :mod:`.similarity`, which imports numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from siglip_pipeline.siglip import similarity

    return getattr(similarity, name)
