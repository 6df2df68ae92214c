"""Compare videos with each other: one vector per video, and the segments that pairs share.

Each pair is compared once. The result is stored (:mod:`.similarity.comparisons`), and a later run
compares only videos whose vectors have changed, with all others. How common a frame is depends on
all videos, so the copy decision is made again, from stored results, for every pair of a video that
shares frames with a changed one. The outcome is the same as that of comparing all videos anew.

Shapes: M moments of all videos, D dimensions.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglip_pipeline.records import IntArray
from siglip_pipeline.similarity import alignment, copy_decision
from siglip_pipeline.similarity.alignment import (
    Footage,
    Segment,
    difference_weights,
    find_matches,
    shared_segments,
    weakly_shared_segments,
)
from siglip_pipeline.similarity.comparisons import (
    ComparedPair,
    ComparedVideo,
    Comparisons,
    Pair,
    Stored,
)
from siglip_pipeline.similarity.copy_decision import decide_copies
from siglip_pipeline.store.database import Connection, Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.moments import cut_moments
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.text.in_words import counted

CANDIDATE_COSINE = 0.85
"""Two videos are compared frame by frame if two of their moments have this cosine."""
_BLOCK, _COLUMNS = 2048, 16384
_KEPT_BYTES = 2**28
_MOST = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityReport:
    """What a comparison found, and how much it had to compare."""

    model: str
    videos: int
    frames: int
    changed: int
    """Videos that were compared now; the others had been before."""
    pairs_compared: int
    """Pairs whose frames were compared now."""
    duplicates: int
    """Pairs of copies among all videos."""
    segments: int
    """Segments that pairs share, copies or not."""
    seconds: float


def compare_videos(
    database: Database,
    model_id: int,
    *,
    anew: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> SimilarityReport:
    """Compare the new and changed videos of a model with all others; store what they share.

    The results change in one transaction. Concurrent calls wait for each other.

    Args:
        database: holds the vectors and the results.
        model_id: the model whose vectors are compared.
        anew: compare all videos, even those that were compared before.
        progress: called with a sentence about the next step.

    Raises:
        ModelNotFoundError: no such model.
    """
    began = time.monotonic()
    model = ModelStore(database).get(model_id)
    store = Comparisons(database, model_id)
    with store.exclusive():
        current, known, rules = store.current(), store.known(), rules_of(model)
        changed = {
            video_id
            for video_id, (_, ingest_id) in current.items()
            if anew or known.get(video_id) != Stored(ingest_id=ingest_id, rules=rules)
        }
        library = _Library(database, model, {v: path for v, (path, _) in current.items()})
        fresh = {
            video_id: video
            for video_id in sorted(changed)
            if (video := _summarise(library, video_id, current[video_id][1])) is not None
        }
        candidates = _candidates(
            {video_id: video.moments_MD for video_id, video in fresh.items()},
            store.moments(current.keys() - changed, model.dim) if fresh else {},
        )
        progress(
            f"new or changed: {len(changed)} of {counted(len(current), 'video')}; comparing "
            f"{counted(len(candidates), 'pair')} frame by frame"
        )
        pairs = dict(_compare(library, candidates))
        removed = changed | (known.keys() - current.keys())
        with database.connection() as connection:
            _replace(store, connection, removed, fresh, pairs, rules)
    videos, frames, duplicates, segments = store.totals()
    return SimilarityReport(
        model=model.name,
        videos=videos,
        frames=frames,
        changed=len(changed),
        pairs_compared=len(candidates),
        duplicates=duplicates,
        segments=segments,
        seconds=time.monotonic() - began,
    )


def _replace(
    store: Comparisons,
    connection: Connection,
    removed: Set[int],
    fresh: Mapping[int, ComparedVideo],
    pairs: Mapping[Pair, ComparedPair],
    rules: str,
) -> None:
    """Replace what is stored of changed and deleted videos; decide anew on all affected pairs."""
    affected = store.partners(connection, removed)
    store.forget(connection, removed)
    store.add(connection, fresh.values(), pairs, rules=rules)
    # The pairs of a new video are not counted yet; a partner of a deleted one has a stale count.
    affected |= store.miscounted(connection) | {video for pair in pairs for video in pair}
    affected -= removed - fresh.keys()
    store.update_spread(connection, affected)
    shared = list(store.pairs_of(connection, affected))
    weights = store.frame_weights(connection, {v for pair, _, _ in shared for v in pair})
    decided = (
        (pair, segment)
        for pair, segments, weak in shared
        for segment in decide_copies(weights[pair[0]], weights[pair[1]], segments, weak)
    )
    store.publish(connection, affected, decided)


def rules_of(model: ModelRow) -> str:
    """Return the constants that decide the outcome; if they differ, videos are compared anew."""
    constants = [
        f"{name}={value}"
        for module in (alignment, copy_decision)
        for name, value in sorted(vars(module).items())
        if name.isupper() and isinstance(value, int | float | tuple)
    ]
    return f"1 candidate={CANDIDATE_COSINE} moments={model.moment_threshold} {' '.join(constants)}"


class _Library:
    """Read the frames of videos on demand; keep the last ones, up to :data:`_KEPT_BYTES`."""

    def __init__(self, database: Database, model: ModelRow, videos: Mapping[int, str]) -> None:
        self._vectors = VectorStore(database)
        self._videos = videos
        self._kept: OrderedDict[int, Footage] = OrderedDict()
        self._kept_bytes = 0
        self.model = model

    def __getitem__(self, video_id: int) -> Footage:
        footage = self._kept.get(video_id)
        if footage is None:
            footage = self._kept[video_id] = self._read(video_id)
            self._kept_bytes += footage.embeddings_ND.nbytes
        self._kept.move_to_end(video_id)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, first = self._kept.popitem(last=False)
            self._kept_bytes -= first.embeddings_ND.nbytes
        return footage

    def _read(self, video_id: int) -> Footage:
        batch = self._vectors.vectors(self.model.model_id, self._videos[video_id])
        return Footage(time_seconds_N=batch.time_seconds_N, embeddings_ND=batch.embeddings_ND)


def _summarise(library: _Library, video_id: int, ingest_id: int) -> ComparedVideo | None:
    """Return what is stored of a video by itself; None if its vectors are gone."""
    footage = library[video_id]
    if not len(footage.time_seconds_N):
        return None
    cut = cut_moments(
        footage.embeddings_ND,
        np.arange(len(footage.time_seconds_N)),
        footage.time_seconds_N,
        threshold=library.model.moment_threshold,
    )
    total_D = cut.means_MD.sum(axis=0)
    return ComparedVideo(
        video_id=video_id,
        ingest_id=ingest_id,
        frames=len(footage.time_seconds_N),
        length_seconds=len(footage.time_seconds_N) * footage.step_seconds,
        mean_D=total_D / max(float(np.linalg.norm(total_D)), 1e-12),
        moments_MD=cut.means_MD.astype(np.float16),
        weights_N=difference_weights(footage.embeddings_ND),
    )


def _candidates(
    fresh: Mapping[int, NDArray[np.float16]], others: Mapping[int, NDArray[np.float16]]
) -> list[Pair]:
    """Return pairs of videos with similar moments, at least one of them fresh, sorted."""
    if not fresh:
        return []
    rows, row_owners = _stacked(fresh)
    columns, column_owners = _stacked({**fresh, **others})
    pairs: set[Pair] = set()
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float32)
        # Fresh videos come first in rows and columns, so each pair of them is compared once.
        for first in range(start, len(columns), _COLUMNS):
            cosines = block @ columns[first : first + _COLUMNS].astype(np.float32).T
            i, j = np.nonzero(cosines >= CANDIDATE_COSINE)
            found = np.stack([row_owners[start + i], column_owners[first + j]], axis=1)
            found = np.unique(np.sort(found[found[:, 0] != found[:, 1]], axis=1), axis=0)
            pairs.update((int(a), int(b)) for a, b in found)
    return sorted(pairs)


def _stacked(
    moments: Mapping[int, NDArray[np.float16]],
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return the moments of all videos in one array, and the video of each row."""
    owners = np.repeat(list(moments), [len(means_MD) for means_MD in moments.values()])
    return np.concatenate(list(moments.values())), owners


def _compare(library: _Library, candidates: Sequence[Pair]) -> Iterator[tuple[Pair, ComparedPair]]:
    """Yield the pairs that share segments, with what they share."""
    for pair in candidates:
        a, b = (library[video_id] for video_id in pair)
        matches = find_matches(a, b)
        segments = shared_segments(a, b, matches) if len(matches) else []
        weak = weakly_shared_segments(a, b) if not _mostly(segments, a, b) else []
        if segments or weak:
            yield (
                pair,
                ComparedPair(
                    frames_a=_among(a, matches.row_N),
                    frames_b=_among(b, matches.column_N),
                    segments=tuple(segments),
                    weak=tuple(weak),
                ),
            )


def _mostly(segments: Sequence[Segment], a: Footage, b: Footage) -> bool:
    """Return whether segments hold so much of a video that weaker matches add nothing."""
    rows = sum(len(segment.rows) for segment in segments)
    columns = sum(len(segment.columns) for segment in segments)
    return rows >= _MOST * len(a.time_seconds_N) or columns >= _MOST * len(b.time_seconds_N)


def _among(footage: Footage, frames: IntArray) -> NDArray[np.bool_]:
    inside = np.zeros(len(footage.time_seconds_N), bool)
    inside[frames] = True
    return inside
