"""Real vectors: footage and rendered films, taken through the pipeline with the demo's model."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from siglip_pipeline.demo.films import render_video
from siglip_pipeline.demo.scenes import random_scene
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.stages.frame_sampling import sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.store.database import Database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore

MODEL = Path(__file__).parent.parent / "siglip_pipeline" / "demo" / "model"
FILM_SECONDS = 120
RENDERED_FPS = 5.0
"""Slow, so that an hour is rendered in a minute or two; sampling takes one frame a second or so."""


class RealFootage:
    """Videos in a folder and ``minutes`` of rendered film, embedded by the demo's model.

    Args:
        folder: of real videos; files that are no videos are passed over.
        minutes: of rendered film beside them.
        sampling: as ``SIGLIP_SAMPLING``.
    """

    def __init__(self, folder: Path, *, minutes: int, sampling: str) -> None:
        self._folder, self._minutes = folder, minutes
        self.overrides = {"model_name": str(MODEL), "sampling": sampling}
        self.spec: ModelSpec = model_spec(
            ModelOptions.from_settings(Settings.load(**self.overrides))
        )
        self.name = f"real_{sampling.replace(':', '')}"
        self.frames = 0
        self.videos = 0

    def load(self, database: Database, model_id: int, settings: Settings) -> None:
        """Render, decode and embed into the database, as a run of the pipeline does."""
        uploads_folder = settings.home / "uploads"
        for source in sorted(self._folder.iterdir()):
            target = uploads_folder / "real" / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        rng = np.random.default_rng(1)
        for film in range(self._minutes * 60 // FILM_SECONDS):
            lengths: list[float] = []
            while sum(lengths) < FILM_SECONDS:
                left = FILM_SECONDS - sum(lengths)
                lengths.append(float(min(left, rng.integers(2, 16))))
            scenes = [random_scene(rng, objects=int(rng.integers(1, 3))) for _ in lengths]
            render_video(
                uploads_folder / "rendered" / f"{film:03d}.mp4",
                scenes,
                seconds_per_scene=lengths,
                fps=RENDERED_FPS,
            )
        uploads = UploadStore(str(uploads_folder), settle_seconds=0)
        frame_store = FrameStore(str(settings.home / "frames"))
        videos = [upload.path for upload in uploads.list()]
        sampled = sample_videos(
            videos,
            uploads=uploads,
            frame_store=frame_store,
            database=database,
            options=FramesOptions.from_settings(settings),
        )
        good = [outcome.video for outcome in sampled if not isinstance(outcome, VideoError)]
        stored = embed_videos(
            good,
            frame_store=frame_store,
            database=database,
            model_id=model_id,
            model_key=self.spec.key,
            engine=lambda: EmbeddingEngine(
                get_model(ModelOptions.from_settings(settings), tower="image")
            ),
        )
        vectors = [done.vectors for done in stored if not isinstance(done, VideoError)]
        self.frames, self.videos = sum(vectors), len(vectors)

    def embed_texts(self, labels: Sequence[str]) -> FloatArray:
        """[N, D] by the model's text tower."""
        settings = Settings.load(**self.overrides)
        return extract_text_embeddings(
            labels, model=get_model(ModelOptions.from_settings(settings), tower="text")
        )
