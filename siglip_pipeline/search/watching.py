"""Match videos with standing queries.

A watch is matched with the vectors of a video alone, so a new video is matched before an index
covers it. Texts are embedded as they are, whatever SIGLIP_RANKING says.
"""

import re
from collections.abc import Callable, Sequence
from unicodedata import normalize

from siglip_pipeline.errors import WatchError
from siglip_pipeline.hits import Hit, SearchFilter
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import score_of
from siglip_pipeline.search.query_terms import TextTerm
from siglip_pipeline.search.query_vectors import text_within
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.globs import glob_regex, is_glob
from siglip_pipeline.store.search.video_hits import EmbeddedVideo, embedded_video, hits_in_video
from siglip_pipeline.store.watches import Watch, WatchStore

MOST_NAME = 100
"""Longest name of a watch, in characters."""

EmbedTexts = Callable[[Sequence[str]], FloatArray]


def check_watch(
    name: str, query: str, *, min_probability: float, videos: Sequence[str] | None
) -> None:
    """Refuse a standing query that cannot be matched.

    Raises:
        WatchError: the name cannot be used.
        QueryError: the text is empty, or a limit cannot be used.
    """
    # An option of a command begins with -, and . and .. are steps in an address.
    usable = name.strip() and name.isprintable() and "/" not in name and name[0] not in "-."
    if not usable or len(name) > MOST_NAME:
        raise WatchError(
            f"{name[:MOST_NAME]!r} is no name for a watch; give 1 to {MOST_NAME} printable "
            "characters without /, of which the first is not - or ."
        )
    TextTerm(query)
    SearchFilter(videos=None if videos is None else tuple(videos), min_probability=min_probability)


class WatchMatcher:
    """Match videos with the standing queries of now, which are read once.

    Args:
        database: holds the vectors and the watches.
        model_id: the model of the vectors.
        embed_texts: the text tower of that model, for a watch without a vector of it.
    """

    def __init__(self, database: Database, model_id: int, *, embed_texts: EmbedTexts) -> None:
        self._database = database
        self._model = ModelStore(database).get(model_id)
        self._embed_texts = embed_texts
        self._store = WatchStore(database)
        self._watches = self._store.all()
        self._vectors = {
            watch.watch_id: watch.embedding_D
            for watch in self._watches
            if watch.embedding_D is not None and watch.model_key == self._model.key
        }

    def match(self, video: str) -> int:
        """Record the moments of a video that fit standing queries; return how many are new.

        Args:
            video: path below UPLOADS.
        """
        found = embedded_video(self._database, self._model.model_id, video)
        if found is None:
            return 0
        return sum(
            self._store.record(
                watch,
                found.video_id,
                self._hits(watch, found),
                source_sha256=found.source_sha256,
                model_key=self._model.key,
            )
            for watch in self._watches
            if covers(watch.videos, video)
        )

    def _hits(self, watch: Watch, video: EmbeddedVideo) -> list[Hit]:
        return hits_in_video(
            self._database,
            self._model,
            video,
            self._vector(watch),
            within=text_within(self._model),
            min_score=score_of(watch.min_probability, self._model),
        )

    def _vector(self, watch: Watch) -> FloatArray:
        """Return the vector of a watch; the first match with a model stores it."""
        if watch.watch_id not in self._vectors:
            [query_D] = self._embed_texts([watch.query])
            self._store.set_vector(watch.watch_id, self._model.key, query_D)
            self._vectors[watch.watch_id] = query_D
        return self._vectors[watch.watch_id]


def covers(videos: Sequence[str] | None, video: str) -> bool:
    """Return whether a path is among paths and globs as a search reads them, in any form."""
    path = normalize("NFC", video)
    return videos is None or any(
        path == given
        or (is_glob(given) and re.fullmatch(glob_regex(given), path, re.DOTALL) is not None)
        for given in (normalize("NFC", pattern) for pattern in videos)
    )
