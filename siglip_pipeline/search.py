"""Find moments by text, by picture, or by another moment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.records import FloatArray, Hit
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index import search_frames
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.vectors import VectorStore

if TYPE_CHECKING:
    from siglip_pipeline.siglip.model import SiglipModel

DEFAULT_K = 10
MAX_K = 1000

TextEmbedder = Callable[[ModelRow, Sequence[str]], FloatArray]
"""Unit vectors [N, D] of texts under a registered model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The answer to one query, best hit first."""

    query: dict[str, Any]
    """The query as it was understood."""
    model: str
    """Name of the model whose vectors were searched."""
    hits: tuple[Hit, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The document that ``search --json`` prints."""
        return {
            "query": self.query,
            "model": self.model,
            "hits": [hit.to_json() for hit in self.hits],
        }


class SearchService:
    """Answers queries over the active model's vectors.

    Text loads the text tower on first use; a picture loads the image tower; another moment loads
    no model at all.

    Args:
        database: an open database.
        settings: says on which device queries are embedded. The model is the active one of the
            database, whatever ``model_name`` says: a query must meet vectors of its own kind.
        embed_texts: in place of :meth:`embed_texts`, for a caller that batches or remembers.
    """

    def __init__(
        self, database: Database, settings: Settings, *, embed_texts: TextEmbedder | None = None
    ) -> None:
        self._database = database
        self._settings = settings
        self._embed_texts = embed_texts or self.embed_texts

    def by_text(
        self, text: str, *, k: int = DEFAULT_K, videos: Sequence[str] | None = None
    ) -> SearchResult:
        """Moments that show what the text says.

        Args:
            text: free text, in the words one would use for a caption.
            k: how many moments at the most.
            videos: search these only; paths below UPLOADS.

        Raises:
            QueryError: the text is empty or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        if not text.strip():
            raise QueryError("the query text is empty; say what to look for, e.g. 'a red car'")
        model = self._active_model()
        vector_D = self._embed_texts(model, [text])[0]
        return self._search(model, vector_D, {"text": text}, k=k, videos=videos)

    def embed_texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Unit vectors [N, D] of texts; the text tower is loaded on first use.

        Raises:
            QueryError: the model's files are not those that the stored vectors were made with.
            ModelError: the model cannot be loaded.
        """
        # torch takes seconds to import and only text and pictures need it.
        from siglip_pipeline.siglip.embeddings import extract_text_embeddings
        from siglip_pipeline.siglip.model import get_model

        siglip = _same(model, get_model(self._model_settings(model), tower="text"))
        return extract_text_embeddings(texts, model=siglip)

    def by_image(
        self, image: Path | bytes, *, k: int = DEFAULT_K, videos: Sequence[str] | None = None
    ) -> SearchResult:
        """Moments that look like a picture.

        Args:
            image: an image file that Pillow can read, or its bytes.
            k: how many moments at the most.
            videos: search these only; paths below UPLOADS.

        Raises:
            QueryError: the file is missing or is not a picture, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        from siglip_pipeline.siglip.embeddings import extract_image_embeddings
        from siglip_pipeline.siglip.model import get_model

        name = str(image) if isinstance(image, Path) else f"{len(image)} bytes"
        picture = _open_picture(image, name)
        model = self._active_model()
        siglip = _same(model, get_model(self._model_settings(model), tower="image"))
        vector_D = extract_image_embeddings([picture], model=siglip)[0]
        return self._search(model, vector_D, {"image": name}, k=k, videos=videos)

    def by_moment(
        self, video: str, seconds: float, *, k: int = DEFAULT_K, videos: Sequence[str] | None = None
    ) -> SearchResult:
        """Moments that look like another moment; nothing is decoded, no model is loaded.

        Args:
            video: path below UPLOADS.
            seconds: the stored frame nearest to this time is the query.
            k: how many moments at the most.
            videos: search these only; paths below UPLOADS.

        Raises:
            QueryError: the video has no vectors, or ``k`` is out of range.
            NothingIndexedError: no index has been published yet.
        """
        model = self._active_model()
        frame = VectorStore(self._database).nearest_frame(model.model_id, video, seconds)
        if frame is None:
            raise QueryError(
                f"{video!r} has no vectors; `siglip-pipeline status` lists what is indexed"
            )
        query = {"like": {"video": video, "time_seconds": frame.time_seconds}}
        return self._search(model, frame.embedding_D, query, k=k, videos=videos)

    def _search(
        self,
        model: ModelRow,
        vector_D: FloatArray,
        query: dict[str, Any],
        *,
        k: int,
        videos: Sequence[str] | None,
    ) -> SearchResult:
        if not 1 <= k <= MAX_K:
            raise QueryError(f"k={k}: between 1 and {MAX_K} hits can be asked for")
        found = search_frames(self._database, model, vector_D, k=k, videos=videos)
        hits = tuple(
            Hit(
                video=frame.video,
                time_seconds=frame.time_seconds,
                frame_index=frame.frame_index,
                score=frame.score,
                probability=float(probability(frame.score, model.logit_scale, model.logit_bias)),
                start_seconds=frame.moment_start_seconds,
                end_seconds=frame.moment_end_seconds,
            )
            for frame in found
        )
        return SearchResult(query={**query, "k": k}, model=model.name, hits=hits)

    def _active_model(self) -> ModelRow:
        model = ModelStore(self._database).active()
        if model is None:
            raise NothingIndexedError(
                "nothing is indexed yet; put videos into "
                f"{self._settings.uploads} and run `siglip-pipeline up`, or run "
                "`siglip-pipeline ingest FILE... --wait`"
            )
        return model

    def _model_settings(self, model: ModelRow) -> Settings:
        return self._settings.model_copy(
            update={"model_name": model.name, "model_revision": model.revision}
        )


def _same(model: ModelRow, siglip: "SiglipModel") -> "SiglipModel":
    """The loaded model, once it is certain that the stored vectors are its own."""
    if siglip.spec.key != model.key:
        raise QueryError(
            f"{model.name} is not what the indexed vectors were made with any more "
            f"({siglip.spec.key}, they are of {model.key}): put the old files back, or index "
            "the videos again"
        )
    return siglip


def parse_moment(text: str) -> tuple[str, float]:
    """Split ``VIDEO@SECONDS``; the video's own name may hold an ``@``.

    Raises:
        QueryError: there is no ``@``, or what follows is not a time.
    """
    video, separator, seconds = text.rpartition("@")
    try:
        value = float(seconds)
    except ValueError:
        value = float("nan")
    if not separator or not video or not 0 <= value < float("inf"):
        raise QueryError(f"{text!r} is not VIDEO@SECONDS, e.g. holiday/beach.mp4@12.5")
    return video, value


def _open_picture(image: Path | bytes, name: str) -> Any:
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise QueryError(f"{name}: no such file") from error
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise QueryError(f"{name} is not a picture that can be read: {error}") from error
