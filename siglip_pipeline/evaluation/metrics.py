"""Retrieval metrics: match hits with judged moments, and rate the ranking with ir-measures.

A metric is named by what is measured, to which depth, and when a hit is right:

    R@5            a hit among the first five has its best frame inside a relevant moment
    R@1 IoU0.5     the first hit and a relevant moment have a temporal IoU of at least 0.5
    mAP@5 IoU0.3   average precision of the first five; without a depth of all hits
    video R@10     a relevant video is among the first ten different videos
    IoU@1          the temporal IoU of the first hit with the moment that it overlaps most

Each relevant moment counts once: of two hits in it, the second is wrong. docs/quality.md has the
definitions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from siglip_pipeline.errors import JudgedQueriesError
from siglip_pipeline.evaluation.judged_queries import JudgedQuery, RelevantMoment
from siglip_pipeline.hits import Hit

USUAL = (
    *("R@1", "R@5", "R@10"),
    *(f"R@{depth} IoU{iou}" for iou in ("0.3", "0.5", "0.7") for depth in (1, 5, 10)),
    *("MRR", "nDCG@10", "mAP"),
    *("video R@1", "video R@5", "video R@10"),
)
"""The metrics of every evaluation."""

_NAME = re.compile(
    r"(?P<video>video )?(?P<measure>R|MRR|nDCG|mAP|IoU)(@(?P<depth>[1-9]\d*))?"
    r"( IoU(?P<iou>0?\.\d+|1))?"
)

PerQuery = dict[int, float]
"""The value of a metric by the line of the query; queries that it cannot rate are absent."""


@dataclass(frozen=True)
class Metric:
    """A metric, read from its name."""

    name: str

    @cached_property
    def parts(self) -> Mapping[str, str | None]:
        """Return the parts of the name.

        Raises:
            JudgedQueriesError: no metric has this name.
        """
        match = _NAME.fullmatch(self.name)
        if match is None or (match["measure"] in ("R", "nDCG", "IoU") and not match["depth"]):
            raise JudgedQueriesError(
                f"there is no metric {self.name!r}; allowed are those of the form R@5, R@1 IoU0.5, "
                "MRR, nDCG@10, mAP, video R@1, IoU@1"
            )
        return match.groupdict()

    @property
    def matching(self) -> str:
        """Return when a hit is right: ``video``, ``inside``, or an IoU such as ``0.5``."""
        return "video" if self.parts["video"] else self.parts["iou"] or "inside"

    def rates(self, query: JudgedQuery) -> bool:
        """Return whether the metric can rate a query."""
        needs_times = self.parts["iou"] is not None or self.parts["measure"] == "IoU"
        return bool(query.relevant) and (
            not needs_times or all(moment.has_times for moment in query.relevant)
        )

    def measure(self) -> Any:
        """Return the measure of ir-measures."""
        import ir_measures

        found = {"R": ir_measures.Success, "MRR": ir_measures.RR, "mAP": ir_measures.AP}
        measure = found.get(self.parts["measure"] or "", ir_measures.nDCG)
        return measure @ int(self.parts["depth"]) if self.parts["depth"] else measure


def temporal_iou(hit: Hit, moment: RelevantMoment) -> float:
    """Return the intersection of a hit and a moment over their union; 0 in different videos."""
    if hit.video != moment.video:
        return 0.0
    end = min(hit.end_seconds, moment.end_seconds)
    common = max(0.0, end - max(hit.start_seconds, moment.start_seconds))
    lengths = hit.end_seconds - hit.start_seconds + moment.end_seconds - moment.start_seconds
    return common / (lengths - common)


def measure_queries(
    found: Iterable[tuple[JudgedQuery, Sequence[Hit]]], names: Iterable[str] = USUAL
) -> dict[str, PerQuery]:
    """Return the value of each metric for each query that it can rate.

    Args:
        found: queries with their hits, best first.
        names: the metrics.

    Raises:
        JudgedQueriesError: no metric has one of the names.
    """
    pairs = list(found)
    metrics = [Metric(name) for name in dict.fromkeys(names)]
    values: dict[str, PerQuery] = {}
    for matching in dict.fromkeys(metric.matching for metric in metrics):
        alike = [m for m in metrics if m.matching == matching and m.parts["measure"] != "IoU"]
        values |= _ranked(pairs, alike, matching)
    for metric in metrics:
        if metric.parts["measure"] == "IoU":
            depth = int(metric.parts["depth"] or 1)
            values[metric.name] = {
                query.line: _overlap(query.relevant, hits[:depth])
                for query, hits in pairs
                if metric.rates(query)
            }
    return {metric.name: values[metric.name] for metric in metrics}


def _ranked(
    pairs: Sequence[tuple[JudgedQuery, Sequence[Hit]]], metrics: Sequence[Metric], matching: str
) -> dict[str, PerQuery]:
    """Return the metrics that ir-measures computes for one way to match."""
    rated = [(q, hits) for q, hits in pairs if metrics and metrics[0].rates(q)]
    if not rated:
        return {metric.name: {} for metric in metrics}
    import ir_measures

    qrels, runs = {}, {}
    for query, hits in rated:
        key = str(query.line)
        grades, ranking = _as_documents(query.relevant, hits, matching)
        qrels[key] = grades
        runs[key] = {document: -float(place) for place, document in enumerate(ranking)}
    names = {metric.measure(): metric.name for metric in metrics}
    values: dict[str, PerQuery] = {metric.name: {} for metric in metrics}
    for value in ir_measures.iter_calc([*names], qrels, runs):
        values[names[value.measure]][int(value.query_id)] = float(value.value)
    return values


def _as_documents(
    relevant: Sequence[RelevantMoment], hits: Sequence[Hit], matching: str
) -> tuple[dict[str, int], list[str]]:
    """Return the grades of the relevant documents, and the ranking of documents.

    Documents are videos, or relevant moments; a hit that is in none is a document of its own.
    """
    if matching == "video":
        grades: dict[str, int] = {}
        for moment in relevant:
            grades[moment.video] = max(moment.grade, grades.get(moment.video, 0))
        return grades, list(dict.fromkeys(hit.video for hit in hits))
    free = dict(enumerate(relevant))
    ranking = []
    for place, hit in enumerate(hits):
        fits = {row: _fit(hit, moment, matching) for row, moment in free.items()}
        best = max(fits, key=lambda row: (fits[row], -row), default=None)
        if best is not None and fits[best] > 0:
            del free[best]
            ranking.append(f"relevant {best}")
        else:
            ranking.append(f"hit {place}")
    return {f"relevant {row}": moment.grade for row, moment in enumerate(relevant)}, ranking


def _fit(hit: Hit, moment: RelevantMoment, matching: str) -> float:
    """Return how well a hit fits a relevant moment; 0 if it does not."""
    if matching != "inside":
        iou = temporal_iou(hit, moment)
        return iou if iou >= float(matching) else 0.0
    inside = moment.start_seconds <= hit.time_seconds < moment.end_seconds
    return float(moment.grade) if hit.video == moment.video and inside else 0.0


def _overlap(relevant: Sequence[RelevantMoment], hits: Sequence[Hit]) -> float:
    return max((temporal_iou(hit, moment) for hit in hits for moment in relevant), default=0.0)
