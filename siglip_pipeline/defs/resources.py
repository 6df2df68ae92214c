"""Dagster resources: uploads, frame store, database and model. Each opens on first use.

An empty field is taken from the environment (:class:`~siglip_pipeline.settings.Settings`) when a
run starts, and a run's config can override a value for that run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import dagster as dg
from pydantic import PrivateAttr

from siglip_pipeline.defs.internals import tags_of_steps
from siglip_pipeline.errors import ModelError
from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.settings import Settings, keep_compiled_code
from siglip_pipeline.siglip.identity import ModelVersion, model_spec, model_version
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore

if TYPE_CHECKING:
    from siglip_pipeline.siglip.engine import EmbeddingEngine, EngineReport

_NAME_TAG: Final = "siglip/model"
_VERSION_TAG: Final = "siglip/model_version"


def model_tags() -> dict[str, str]:
    """Return the tags of a step that uses the model: the one that this process would use."""
    model = model_version(ModelOptions.from_settings(Settings.load()))
    return {_NAME_TAG: model.name, _VERSION_TAG: model.version}


class UploadsResource(dg.ConfigurableResource[UploadStore]):
    """The folder or bucket that videos arrive in."""

    url: str | None = None
    """Folder or fsspec URL; default ``SIGLIP_UPLOADS``."""

    def store(self) -> UploadStore:
        """Return the store of uploads, without opening it."""
        settings = Settings.load()
        return UploadStore(
            self.url or settings.uploads,
            shard=settings.part,
            settle_seconds=settings.uploads_settle_seconds,
        )


class FrameStoreResource(dg.ConfigurableResource[FrameStore]):
    """Where the sampled frames are kept: one Parquet file per video."""

    url: str | None = None
    """Folder or fsspec URL; default ``SIGLIP_FRAME_STORE``."""

    def store(self) -> FrameStore:
        """Return the store of frames, without opening it."""
        return FrameStore(self.url or Settings.load().frame_store_url)


class DatabaseResource(dg.ConfigurableResource[Database]):
    """Postgres with pgvector: ``SIGLIP_DATABASE_URL``, or the embedded server."""

    @contextmanager
    def open(self) -> Iterator[Database]:
        """Open a connection pool for the length of the block, and migrate the schema if needed.

        Raises:
            DatabaseUnavailableError: no server answers at the URL.
        """
        with open_database(DatabaseOptions.from_settings(Settings.load())) as database:
            yield database


class SiglipResource(dg.ConfigurableResource["EmbeddingEngine"]):
    """SigLIP 2 on this process's device. The model loads on first use and stays for the process."""

    model_name: str | None = None
    """Hub id or local folder; default ``SIGLIP_MODEL_NAME``."""
    model_revision: str | None = None
    """Pinned hub revision; default ``SIGLIP_MODEL_REVISION``."""
    device: str | None = None
    """``auto``, ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; default ``SIGLIP_DEVICE``."""
    dtype: str | None = None
    """``auto``, ``float32``, ``bfloat16`` or ``float16``; default ``SIGLIP_DTYPE``."""
    batch_size: int | None = None
    """Frames per forward pass; default ``SIGLIP_BATCH_SIZE``."""
    _launched_with: ModelVersion | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Note, on a worker of another machine, which model the run was launched with."""
        if context.run is None or context.instance is None:
            return
        if self.model_name or self.model_revision or Settings.load().executor != "celery":
            return
        tags = tags_of_steps(context.instance, context.run)
        if _NAME_TAG in tags:
            self._launched_with = ModelVersion(name=tags[_NAME_TAG], version=tags[_VERSION_TAG])

    def settings(self) -> Settings:
        """Return the environment's settings, with this resource's own fields in their place."""
        chosen = {
            name: value
            for name in ("model_name", "model_revision", "device", "dtype", "batch_size")
            if (value := getattr(self, name)) not in (None, "")
        }
        return Settings.load(**chosen)

    def spec(self) -> ModelSpec:
        """Return the identity of the model, read from its files without loading it.

        Raises:
            ModelError: it cannot be used, or it is not the one that the run was launched with:
                searches would not find what is made with it.
        """
        options = ModelOptions.from_settings(self.settings())
        spec, wanted = model_spec(options), self._launched_with
        if wanted is not None and not wanted.agrees(own := model_version(options)):
            raise ModelError(
                f"this run was launched with the model {wanted}, and its worker has {own}: nothing "
                "is stored. Give the worker the SIGLIP_MODEL_NAME, the SIGLIP_MODEL_REVISION and "
                "the model's files of the services that start runs; after a change restart both. "
                "Then launch the job retry_failed"
            )
        return spec

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors of texts, ``[N, D]``; loads the text tower unless they are kept."""
        from siglip_pipeline.siglip.kept_texts import kept_text_vectors

        settings = self.settings()
        options = ModelOptions.from_settings(settings)

        def embed(texts: Sequence[str]) -> FloatArray:
            from siglip_pipeline.siglip.model import get_model
            from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings

            return extract_text_embeddings(texts, model=get_model(options, tower="text"))

        folder = settings.cache.expanduser()
        return kept_text_vectors(texts, self.spec(), folder=folder, embed=embed)

    def engine(self, log: Callable[[str], None]) -> "EngineHandle":
        """Return a handle that makes the embedding engine and loads the model on first use.

        Args:
            log: receives the progress of the embedding, at most every 10 s.
        """
        return EngineHandle(self.settings(), log)


class EngineHandle:
    """Makes the engine on first use, so that a run with nothing to embed loads no model."""

    def __init__(self, settings: Settings, log: Callable[[str], None]) -> None:
        self._settings = settings
        self._log = log
        self._engine: EmbeddingEngine | None = None

    def __call__(self) -> "EmbeddingEngine":
        """Return the engine.

        Raises:
            ModelError: the model cannot be found, loaded, or put on the device.
        """
        if self._engine is None:
            # Importing torch and transformers takes seconds: do it only in a run that embeds.
            from siglip_pipeline.siglip.compiled import WORTH_COMPILING_SECONDS, inductor
            from siglip_pipeline.siglip.engine import EmbeddingEngine
            from siglip_pipeline.siglip.model import get_model

            model = get_model(ModelOptions.from_settings(self._settings), tower="image")
            self._log(f"{model.spec.name} is loaded on {model.device} in {model.dtype}")
            cache, mode = self._settings.cache.expanduser(), self._settings.compile
            if mode != "off":
                keep_compiled_code(cache / "compiled")
            self._engine = EmbeddingEngine(
                model,
                batch_size=self._settings.batch_size,
                batch_sizes=cache / "batch_sizes.json",
                compiler=None if mode == "off" else inductor,
                compile_from_seconds=WORTH_COMPILING_SECONDS if mode == "auto" else 0.0,
                on_progress=lambda progress: self._log(str(progress)),
            )
        return self._engine

    @property
    def report(self) -> "EngineReport | None":
        """Figures of the run; None if nothing was embedded."""
        return None if self._engine is None else self._engine.report
