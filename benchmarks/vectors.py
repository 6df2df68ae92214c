"""Made vectors that lie to each other as the frames of videos do, and queries for them.

A frame is the unit sum of what all pictures share, its topic, its video, its scene, and an AR(1)
walk within the scene, so that neighbours have a chosen mean cosine. Queries: ``picture_queries``
are frames of the same scenes that are not stored; ``text_queries`` lie off in one common direction
on which all pictures have the same coordinate, as Liang et al. found for such models (Mind the
Gap, arXiv:2203.02053), and lean a little towards some scenes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from siglip_pipeline.records import EmbeddingBatch, FloatArray

FRAMES_PER_VIDEO = 500

# Shares of the squared length of a frame's vector. The rest is the walk within the scene.
COMMON, TOPIC, VIDEO, SCENE = 0.25, 0.15, 0.15, 0.30
WALK = 1 - COMMON - TOPIC - VIDEO - SCENE
COPY = 0.97
TEXT_LEAN = 0.15
"""About the cosine of a text with the pictures that it describes."""


@dataclass(frozen=True, slots=True)
class Footage:
    """A made collection. The same arguments give the same vectors."""

    frames: int
    dim: int = 768
    neighbours: float = 0.97
    """Mean cosine of neighbouring frames of a scene."""
    scene_frames: int = 40
    """Mean length of a scene; lengths are geometric."""
    seed: int = 7
    per_video: int = FRAMES_PER_VIDEO
    shared: int = 0
    """Frames at the start of each video that are the same in all, and as many at its end."""
    copies: int = 1
    """How often each video was uploaded; copies have a cosine of :data:`COPY`."""

    @property
    def videos(self) -> int:
        """How many videos the frames make up."""
        return -(-self.frames // self.per_video)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        """Video by video."""
        return self.since(0)

    def since(self, first: int) -> Iterator[EmbeddingBatch]:
        """From that video on."""
        for video in range(first, self.videos):
            count = self._length(video)
            yield EmbeddingBatch(
                video=f"made/{video:06d}.mp4",
                frame_index_N=np.arange(count, dtype=np.int64) * 25,
                time_seconds_N=np.arange(count, dtype=np.float64),
                embeddings_ND=self._video(video, count),
            )

    def _length(self, video: int) -> int:
        return min(self.per_video, self.frames - video * self.per_video)

    def _topics(self) -> FloatArray:
        count = max(4, self.videos // 25)
        return _directions(np.random.default_rng([self.seed, 1]), count, self.dim)

    def _common(self) -> FloatArray:
        (common_D,) = _directions(np.random.default_rng([self.seed, 0]), 1, self.dim)
        return np.asarray(common_D, dtype=np.float32)

    def _video(self, video: int, count: int, *, extra_seed: int = 0) -> FloatArray:
        original = video % max(1, self.videos // self.copies)
        rng = np.random.default_rng([self.seed, 2, original])
        topics = self._topics()
        topic_D = topics[rng.integers(len(topics))]
        video_D = _directions(rng, 1, self.dim)[0]
        starts = np.flatnonzero(rng.random(count) < 1 / self.scene_frames)
        bounds = np.unique(np.concatenate([[0], starts, [count]]))
        scenes_SD = _directions(rng, len(bounds) - 1, self.dim)
        # Where only the walk differs, the cosine is 1 - WALK + WALK * step.
        step = 1 - (1 - self.neighbours) / WALK
        walk_rng = np.random.default_rng([self.seed, 3 + extra_seed, original])
        frames_ND = np.empty((count, self.dim), np.float32)
        for scene, (start, end) in enumerate(itertools.pairwise(bounds)):
            fixed_D = (
                np.sqrt(COMMON) * self._common()
                + np.sqrt(TOPIC) * topic_D
                + np.sqrt(VIDEO) * video_D
                + np.sqrt(SCENE) * scenes_SD[scene]
            )
            walk_ND = _walk(walk_rng, int(end - start), self.dim, step)
            frames_ND[start:end] = fixed_D + np.sqrt(WALK) * walk_ND
        if self.shared:
            own = np.random.default_rng([self.seed, 4])
            first_D, last_D = _directions(own, 2, self.dim)
            common_D = np.sqrt(COMMON) * self._common()
            frames_ND[: self.shared] = common_D + np.sqrt(1 - COMMON) * first_D
            frames_ND[-self.shared :] = common_D + np.sqrt(1 - COMMON) * last_D
        frames_ND = _unit(frames_ND)
        if self.copies > 1:
            coded_ND = _directions(np.random.default_rng([self.seed, 5, video]), count, self.dim)
            frames_ND = _unit(np.sqrt(COPY) * frames_ND + np.sqrt(1 - COPY) * coded_ND)
        return frames_ND

    def picture_queries(self, count: int) -> FloatArray:
        """[count, D]: frames of the same scenes that are not stored."""
        rng = np.random.default_rng([self.seed, 100])
        queries = []
        for video in rng.integers(self.videos, size=count):
            length = self._length(int(video))
            frames_ND = self._video(int(video), length, extra_seed=1)
            queries.append(frames_ND[rng.integers(length)])
        return np.array(queries)

    def text_queries(self, count: int) -> FloatArray:
        """[count, D]: far from all pictures, a little nearer to one scene, less so to a second."""
        rng = np.random.default_rng([self.seed, 200])
        gap_D = np.zeros(self.dim, np.float32)
        gap_D[-1] = 1
        own_ND = _directions(rng, count, self.dim)
        pictures_ND = self.picture_queries(2 * count) - np.sqrt(COMMON) * self._common()
        lean_ND = pictures_ND[:count] + 0.5 * pictures_ND[count:]
        return _unit(gap_D + TEXT_LEAN * (_unit(lean_ND) + own_ND))


def _walk(rng: np.random.Generator, count: int, dim: int, step: float) -> FloatArray:
    """Unit steps of an AR(1) walk with autocorrelation ``step``."""
    noise_ND = _directions(rng, count, dim)
    walk_ND = np.empty_like(noise_ND)
    walk_ND[0] = noise_ND[0]
    fresh = np.sqrt(1 - step**2)
    for i in range(1, count):
        walk_ND[i] = step * walk_ND[i - 1] + fresh * noise_ND[i]
    return _unit(walk_ND)


def _directions(rng: np.random.Generator, count: int, dim: int) -> FloatArray:
    """Random unit vectors without a share in the last dimension, which is the texts'."""
    vectors_ND = rng.standard_normal((count, dim), dtype=np.float32)
    vectors_ND[:, -1] = 0
    return _unit(vectors_ND)


def _unit(vectors_ND: FloatArray) -> FloatArray:
    norms_N1 = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    return np.asarray(vectors_ND / norms_N1, dtype=np.float32)
