"""SigLIP embeddings and what can be computed from them.

Owns every use of torch and transformers: checkpoints, preprocessing, the engine. Importing this
package costs numpy and nothing else; the model lives in :mod:`.model` and :mod:`.embeddings`, which
are imported where a model is needed. Imports `records`, `text`, `files` and `errors`.
"""

from siglip_pipeline.siglip.similarity import cosine_similarity, find_similar_frames

__all__ = ["cosine_similarity", "find_similar_frames"]
