"""Zero-shot labels: which words fit which videos, each judged by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import probability_of, score_of
from siglip_pipeline.siglip.label_prompts import PROMPT_TEMPLATE
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.label_scores import fit_in_videos
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded3, Rounded6

SURE = 0.5
"""A frame has a label when its probability is at least this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """How well one label fits one video."""

    __pydantic_config__ = DOCUMENTED

    label: str
    probability: Rounded6
    """Of the best frame: SigLIP's sigmoid. Probabilities of several labels do not add up to 1."""
    score: Rounded6
    """Cosine similarity of the best frame."""
    time_seconds: Rounded3
    """Where the best frame is."""
    share: Rounded6
    """Share of the video's frames that have the label, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLabels:
    """The labels of one video, most probable first; ties in the order they were given."""

    __pydantic_config__ = DOCUMENTED

    video: str
    video_id: int
    frames: int
    """Frames that were judged."""
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """Labels over some videos, or all of them."""

    model: str
    labels: dict[str, Rounded6]
    """Share of all judged frames that have each label, 0 to 1; 0 where none were judged."""
    videos: tuple[VideoLabels, ...]
    """By path."""


def label_sentences(labels: Sequence[str], template: str = PROMPT_TEMPLATE) -> list[str]:
    """The sentences that are compared with the frames.

    Raises:
        QueryError: no labels, an empty or a repeated one, or a template without ``{label}``.
    """
    if isinstance(labels, str) or not labels or not all(label.strip() for label in labels):
        raise QueryError(f"labels={labels!r}: give at least one label, none of them empty")
    if len(set(labels)) < len(labels):
        raise QueryError(f"labels={list(labels)!r}: give each label once")
    if "{label}" not in template:
        raise QueryError(f"template={template!r} has no {{label}} in it")
    return [template.replace("{label}", label) for label in labels]


def label_videos(
    database: Database,
    model: ModelRow,
    labels: Sequence[str],
    vectors_LD: FloatArray,
    filter: SearchFilter,
) -> LabelReport:
    """Judge every frame in scope by the vector of each label; see :meth:`.SearchService.label`."""
    sure = SURE if filter.min_probability is None else filter.min_probability
    by_video: dict[str, tuple[int, int, list[LabelScore]]] = {}
    with database.snapshot() as connection:
        scope = resolve_scope(connection, model.model_id, filter)
        for label, vector_D in zip(labels, vectors_LD, strict=True):
            for fit in fit_in_videos(
                connection,
                model.model_id,
                vector_D,
                scope=scope,
                min_score=score_of(sure, model),
            ):
                score = LabelScore(
                    label=label,
                    probability=probability_of(fit.best_score, model),
                    score=fit.best_score,
                    time_seconds=fit.best_seconds,
                    share=fit.fitting / fit.frames,
                )
                entry = by_video.setdefault(fit.video, (fit.video_id, fit.frames, []))
                entry[2].append(score)
    videos = tuple(
        VideoLabels(
            video=video,
            video_id=video_id,
            frames=frames,
            labels=tuple(sorted(scores, key=lambda score: -score.score)),
        )
        for video, (video_id, frames, scores) in by_video.items()
    )
    shares = {label: _share_of_all(label, videos) for label in labels}
    return LabelReport(model=model.name, labels=shares, videos=videos)


def _share_of_all(label: str, videos: Sequence[VideoLabels]) -> float:
    frames = sum(video.frames for video in videos)
    having = sum(
        score.share * video.frames
        for video in videos
        for score in video.labels
        if score.label == label
    )
    return having / frames if frames else 0.0
