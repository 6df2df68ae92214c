"""Small made collections for the store's tests."""

from typing import Any

import numpy as np

from siglip_pipeline.hits import APART, Hit, SearchFilter, SearchRequest
from siglip_pipeline.records import EmbeddingBatch, FloatArray, ModelSpec, Upload, VideoInfo
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.partitioning import partition_frames
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.moment_search import MomentSearch
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore

DIM = 32
SCENE = 8
"""Frames of a scene; the scenes of a video have nothing in common."""


def spec(key: str = "tiny", dim: int = DIM) -> ModelSpec:
    return ModelSpec(
        name=f"made/{key}", revision=None, key=key, dim=dim, logit_scale=4.6, logit_bias=-16.0
    )


def footage(seed: int, frames: int = 24, dim: int = DIM, noise: float = 0.03) -> FloatArray:
    """Unit vectors [frames, dim]: scenes of near-duplicates."""
    rng = np.random.default_rng(seed)
    scenes_SD = rng.standard_normal((-(-frames // SCENE), dim))
    scenes_SD /= np.linalg.norm(scenes_SD, axis=1, keepdims=True)
    frames_ND = scenes_SD.repeat(SCENE, axis=0)[:frames]
    frames_ND = frames_ND + noise * rng.standard_normal((frames, dim))
    frames_ND /= np.linalg.norm(frames_ND, axis=1, keepdims=True)
    return frames_ND.astype(np.float32)


def batch(video: str, vectors_ND: FloatArray) -> EmbeddingBatch:
    """A frame a second of a 25 fps video."""
    n = len(vectors_ND)
    return EmbeddingBatch(
        video=video,
        frame_index_N=np.arange(n, dtype=np.int64) * 25,
        time_seconds_N=np.arange(n, dtype=np.float64),
        embeddings_ND=vectors_ND,
    )


def sha(text: str) -> str:
    return text.encode().hex().ljust(64, "0")[:64]


def load(database: Database, model_id: int, video: str, vectors_ND: FloatArray) -> None:
    """Store a video's vectors, written anew whatever is there."""
    VectorStore(database).load(
        model_id, batch(video, vectors_ND), source_sha256=sha(video), sampling="fps:1", force=True
    )


def record(
    database: Database,
    video: str,
    *,
    modified_at: float = 1e9,
    frames: int = 24,
    upload: Upload | None = None,
    sha256: str | None = None,
) -> None:
    """Note a video as decoded."""
    from fractions import Fraction

    upload = upload or Upload(path=video, size_bytes=10, modified_at=modified_at)
    info = VideoInfo(
        video=video,
        container="mov",
        codec="h264",
        width=64,
        height=48,
        rotation_degrees=0,
        time_base=Fraction(1, 25),
        start_pts=0,
        duration_seconds=24.0,
        frame_count=600,
        frame_rate=25.0,
        size_bytes=10,
    )
    VideoStore(database).record_frames(
        upload=upload,
        info=info,
        source_sha256=sha256 or sha(video),
        sampling="fps:1",
        frames=frames,
        damaged_share=0.0,
    )


def collection(
    database: Database,
    videos: int = 12,
    *,
    key: str = "tiny",
    dim: int = DIM,
    partitioned: bool = False,
) -> int:
    """Decoded and embedded videos ``v00.mp4``, ``v01.mp4`` …; the model's id."""
    model_id = ModelStore(database).register(spec(key, dim))
    for i in range(videos):
        record(database, f"v{i:02d}.mp4", modified_at=1e9 + i)
        load(database, model_id, f"v{i:02d}.mp4", footage(i, dim=dim))
    if partitioned:
        partition_frames(database, model_id)
    return model_id


def settings(**values: object) -> Settings:
    """Recall checks of a few queries: what the check finds has tests of its own."""
    return Settings.load(
        **{"database_url": "postgresql://unused/", "index_recall_queries": 12} | values
    )


def index_options(**overrides: Any) -> IndexOptions:
    """The choices of an index under :func:`settings`."""
    return IndexOptions.from_settings(settings(**overrides))


def request(
    query: FloatArray,
    *,
    k: int,
    within: float = APART,
    min_score: float = -2.0,
    ef_search: int | None = None,
    **filters: Any,
) -> SearchRequest:
    """What a search is asked: a vector [D], or several [Q, D], and the fields of a filter."""
    return SearchRequest(
        query_QD=np.atleast_2d(query),
        k=k,
        within=within,
        min_score=min_score,
        ef_search=ef_search,
        filter=SearchFilter(**filters),
    )


def search(
    database: Database, model: ModelRow, query: FloatArray, *, k: int, **asked: Any
) -> list[Hit]:
    """One search by one that knows nothing yet."""
    return MomentSearch(database).search(model, request(query, k=k, **asked))
