"""Metrics by hand: what counts as right, at which depth, and what the intervals are of."""

import math

import pytest

from siglip_pipeline.errors import JudgedQueriesError
from siglip_pipeline.evaluation.comparing import compare_reports, worse_queries
from siglip_pipeline.evaluation.judged_queries import JudgedQuery, RelevantMoment
from siglip_pipeline.evaluation.metrics import Metric, measure_queries, temporal_iou
from siglip_pipeline.evaluation.quality_report import (
    NOTHING_FOUND,
    NOTHING_HERE,
    QualityReport,
    QueryQuality,
    by_tag,
    nothing_here,
)
from siglip_pipeline.hits import Hit
from siglip_pipeline.search import TextTerm


def hit(video: str, best: float, start: float, end: float) -> Hit:
    return Hit(
        video=video,
        video_id=1,
        time_seconds=best,
        frame_index=0,
        score=0.1,
        probability=0.5,
        start_seconds=start,
        end_seconds=end,
        media_time_seconds=best,
    )


def judged(*relevant: RelevantMoment, line: int = 1, tags: tuple[str, ...] = ()) -> JudgedQuery:
    return JudgedQuery(
        line=line, label=f"q{line}", terms=(TextTerm("q"),), relevant=relevant, tags=tags
    )


def moment(video: str, start: float, end: float, grade: int = 1) -> RelevantMoment:
    return RelevantMoment(video=video, start_seconds=start, end_seconds=end, grade=grade)


def values(query: JudgedQuery, hits: list[Hit], *names: str) -> list[float]:
    measured = measure_queries([(query, hits)], names)
    return [measured[name][query.line] for name in names]


def test_a_hit_is_right_if_its_best_frame_is_inside() -> None:
    query = judged(moment("a", 10, 20))
    hits = [hit("b", 15, 10, 20), hit("a", 20, 12, 20), hit("a", 19.9, 0, 60)]
    assert values(query, hits, "R@1", "R@5", "MRR", "mAP") == [0, 1, 1 / 3, 1 / 3]
    assert values(query, [hit("a", 10, 0, 60)], "R@1") == [1]
    assert values(query, [], "R@10", "MRR", "nDCG@10", "video R@1", "IoU@1") == [0] * 5


def test_a_relevant_moment_counts_once() -> None:
    query = judged(moment("a", 0, 10), moment("a", 20, 30))
    hits = [hit("a", 1, 0, 5), hit("a", 6, 5, 10), hit("a", 21, 20, 30)]
    assert values(query, hits, "mAP") == [(1 / 1 + 2 / 3) / 2]
    gain = 1 + 1 / math.log2(4)
    assert values(query, hits, "nDCG@10") == [pytest.approx(gain / (1 + 1 / math.log2(3)))]


def test_grades_weigh_in_ndcg() -> None:
    query = judged(moment("a", 0, 10, grade=3), moment("b", 0, 10, grade=1))
    hits = [hit("b", 1, 0, 10), hit("a", 1, 0, 10)]
    best, found = 3 + 1 / math.log2(3), 1 + 3 / math.log2(3)
    assert values(query, hits, "nDCG@10") == [pytest.approx(found / best)]


def test_temporal_iou() -> None:
    assert temporal_iou(hit("a", 0, 0, 10), moment("a", 5, 15)) == pytest.approx(1 / 3)
    assert temporal_iou(hit("a", 0, 0, 10), moment("b", 0, 10)) == 0
    assert temporal_iou(hit("a", 0, 0, 5), moment("a", 5, 9)) == 0
    query = judged(moment("a", 5, 15), moment("a", 40, 50))
    hits = [hit("a", 0, 0, 10), hit("a", 41, 40, 48)]
    assert values(query, hits, "R@1 IoU0.3", "R@1 IoU0.5", "R@5 IoU0.7") == [1, 0, 1]
    assert values(query, hits, "IoU@1", "IoU@2") == [pytest.approx(1 / 3), pytest.approx(0.8)]
    assert values(query, hits, "mAP@1 IoU0.3") == [0.5]


def test_videos_rank_by_their_first_hit() -> None:
    query = judged(moment("c", 0, 10))
    hits = [*(hit("a", t, t, t + 1) for t in range(8)), hit("b", 0, 0, 9), hit("c", 50, 50, 60)]
    assert values(query, hits, "video R@1", "video R@5", "R@10") == [0, 1, 0]


def test_whole_videos_have_no_overlap_in_time() -> None:
    whole = judged(RelevantMoment(video="a"))
    measured = measure_queries([(whole, [hit("a", 5, 0, 9)])], ["R@1", "R@1 IoU0.5", "IoU@1"])
    assert measured == {"R@1": {1: 1.0}, "R@1 IoU0.5": {}, "IoU@1": {}}


@pytest.mark.parametrize("name", ["R", "R@0", "nDCG", "recall@5", "R@5 IoU2", "video"])
def test_unknown_metrics_are_refused(name: str) -> None:
    with pytest.raises(JudgedQueriesError, match=f"no metric '{name}'; allowed are"):
        _ = Metric(name).parts


def test_nothing_here_is_measured_from_both_sides() -> None:
    queries = [judged(moment("a", 0, 1), line=1), judged(line=2), judged(line=3)]
    measured = nothing_here(queries, answered_nothing={1, 2})
    assert measured == {NOTHING_HERE: {1: 0.0, 2: 1.0}, NOTHING_FOUND: {2: 1.0, 3: 0.0}}


def test_tags_and_intervals() -> None:
    queries = [judged(line=n, tags=("odd",) if n % 2 else ("even", "all")) for n in range(100)]
    per_query = {n: float(n % 2) for n in range(100)}
    everything, even, all_, odd = by_tag(queries, {"R@1": per_query})
    assert [t.tag for t in (everything, even, all_, odd)] == ["", "even", "all", "odd"]
    [value] = everything.metrics
    assert (value.mean, value.queries) == (0.5, 100)
    # The standard error is 0.05.
    assert 0.37 < value.low < 0.43 < 0.57 < value.high < 0.63
    assert [(t.queries, t.metrics[0].mean) for t in (even, odd)] == [(50, 0.0), (50, 1.0)]
    assert (odd.metrics[0].low, odd.metrics[0].high) == (1, 1)


def report(scores: dict[int, float]) -> QualityReport:
    queries = [judged(line=line) for line in scores]
    return QualityReport(
        judged="j",
        digest="d",
        model="m",
        model_key="k",
        generation=1,
        min_probability=0.0,
        tags=by_tag(queries, {"R@1": scores}),
        queries=tuple(
            QueryQuality(line=line, query=f"q{line}", values={"R@1": score})
            for line, score in scores.items()
        ),
        skipped=0,
        seconds=0.0,
    )


def test_a_comparison_is_paired() -> None:
    before = report(dict.fromkeys(range(20), 0.0) | {20: 1.0, 21: 1.0})
    after = report(dict.fromkeys(range(10), 1.0) | dict.fromkeys(range(10, 21), 0.0) | {99: 1.0})
    [row] = compare_reports(before, after)
    assert (row.wins, row.losses, row.ties) == (10, 1, 10), "of the 21 queries of both"
    assert row.before == pytest.approx(1 / 21)
    assert row.after == pytest.approx(10 / 21)
    # Signs of 11 differences: 2 * (1 + 11) of 2048 are as far from even.
    assert row.p_value == pytest.approx(24 / 2048)
    [worse] = worse_queries(before, after, "R@1")
    assert (worse.line, worse.query, worse.before, worse.after) == (20, "q20", 1.0, 0.0)
    [same] = compare_reports(before, before)
    assert (same.p_value, same.ties) == (1.0, 22)
    [one] = compare_reports(report({1: 1.0, 2: 1.0}), report({1: 1.0, 2: 0.0}))
    assert (one.losses, one.p_value) == (1, 1.0), "either sign is as far from even"


def test_average_precision_of_a_worked_example() -> None:
    """Average precision of relevant places 1, 3, 6 of three: (1 + 2/3 + 3/6) / 3."""
    relevant = [moment(str(n), 0, 1) for n in (0, 2, 5)]
    hits = [hit(str(n), 0, 0, 1) for n in range(7)]
    assert values(judged(*relevant), hits, "mAP") == [pytest.approx((1 + 2 / 3 + 0.5) / 3)]
