"""Batches that come in any order become videos in the order of the input."""

from collections.abc import Sequence

import numpy as np
import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch, FloatArray
from siglip_pipeline.siglip.collect import Collector
from siglip_pipeline.siglip.messages import Begin, End, Failed, Span, Vectors

DIM = 3


def span(video: int, position: int, frames: int) -> Span:
    """Frames that are known by their number: every second one of a film, four a second."""
    number_N = np.arange(position, position + frames)
    return Span(video, position, frame_index_N=2 * number_N, time_seconds_N=number_N / 4)


def vectors(*spans: Span) -> Vectors:
    """A batch whose vectors hold their video and the number of their frame."""
    rows: list[FloatArray] = []
    for part in spans:
        number_N = part.frame_index_N // 2
        rows.append(np.stack([0 * number_N + part.video, number_N, 0 * number_N], axis=1))
    return Vectors(spans, np.concatenate(rows).astype(np.float32))


def opened(*names: str) -> Collector:
    collector = Collector(dim=DIM)
    for number, name in enumerate(names):
        collector.take(Begin(number, name))
    return collector


def check(result: EmbeddingBatch | VideoError, video: int, name: str, frames: int) -> None:
    assert isinstance(result, EmbeddingBatch)
    number_N = np.arange(frames)
    assert result.video == name
    assert result.frame_index_N.tolist() == (2 * number_N).tolist()
    assert result.time_seconds_N.tolist() == (number_N / 4).tolist()
    expected_ND = np.stack([0 * number_N + video, number_N, 0 * number_N], axis=1)
    np.testing.assert_array_equal(result.embeddings_ND, expected_ND)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_spans_of_batches_in_any_order_are_put_in_theirs(order: Sequence[int]) -> None:
    collector = opened("a", "b")
    batches = [
        vectors(span(0, 0, 3), span(1, 0, 2)),
        vectors(span(1, 2, 1), span(0, 3, 4)),
        vectors(span(0, 7, 2)),
    ]
    for number in order:
        assert [*collector.complete()] == []
        collector.take(batches[number])
    assert [*collector.complete()] == [], "more frames may come"
    collector.take(End(1, 3))
    assert [*collector.complete()] == [], "the first video goes first"
    collector.take(End(0, 9))
    assert not collector.empty
    first, second = collector.complete()
    assert collector.empty
    check(first, 0, "a", 9)
    check(second, 1, "b", 3)


def test_a_video_without_frames_has_no_vectors_of_the_right_size() -> None:
    collector = opened("a")
    collector.take(End(0, 0))
    [result] = collector.complete()
    assert isinstance(result, EmbeddingBatch)
    assert result.embeddings_ND.shape == (0, DIM)
    assert result.frame_index_N.dtype == np.int64
    assert result.time_seconds_N.dtype == np.float64


def test_a_video_fails_once_with_its_first_reason_and_the_others_go_on() -> None:
    collector = opened("a", "b")
    collector.take(vectors(span(0, 0, 2), span(1, 0, 1)))
    collector.take(Failed(0, "first"))
    collector.take(Failed(0, "second"))
    collector.take(vectors(span(0, 2, 2), span(1, 1, 1)))
    [failed] = collector.complete()
    assert isinstance(failed, VideoError)
    assert (failed.video, failed.reason) == ("a", "first")
    for late in (End(0, 9), Failed(0, "late"), vectors(span(0, 4, 1))):
        collector.take(late)
    collector.take(End(1, 2))
    [result] = collector.complete()
    check(result, 1, "b", 2)


def test_a_batch_of_several_videos_is_not_held_for_one_of_them() -> None:
    collector = opened("a", "b")
    own, shared = vectors(span(0, 0, 2)), vectors(span(0, 2, 1), span(1, 0, 5))
    for batch in (own, shared):
        collector.take(batch)
    held = [rows_ND for video in collector._open.values() for _, rows_ND in video.spans]
    assert [np.shares_memory(rows_ND, own.vectors_ND) for rows_ND in held] == [True, False, False]
    assert not any(np.shares_memory(rows_ND, shared.vectors_ND) for rows_ND in held)
