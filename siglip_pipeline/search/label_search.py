"""Zero-shot labels: score how well each label fits each video, independently of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.records import FloatArray
from siglip_pipeline.search.probability import probability_of, score_of
from siglip_pipeline.siglip.prompt_template import PROMPT_TEMPLATE
from siglip_pipeline.store import tables
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.label_scores import fit_in_videos
from siglip_pipeline.store.models import ModelRow
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.text.json_form import DOCUMENTED, Rounded3, Rounded6

SURE = 0.5
"""A frame has a label if its probability is at least this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """How well one label fits one video."""

    __pydantic_config__ = DOCUMENTED

    label: str
    probability: Rounded6
    """SigLIP's sigmoid for the best frame. Probabilities of several labels do not add up to 1."""
    score: Rounded6
    """Cosine similarity of the best frame."""
    time_seconds: Rounded3
    """Time of the best frame."""
    media_time_seconds: Rounded3
    """What the clock of a player shows there."""
    share: Rounded6
    """Share of the video's frames that have the label, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLabels:
    """The labels of one video, most probable first; ties in the order they were given."""

    __pydantic_config__ = DOCUMENTED

    video: str
    video_id: int
    frames: int
    """Frames that were scored."""
    labels: tuple[LabelScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """The labels of some videos, or of all."""

    model: str
    labels: dict[str, Rounded6]
    """Share of all scored frames that have each label, 0 to 1; 0 if none were scored."""
    videos: tuple[VideoLabels, ...]
    """The videos, sorted by path."""


def label_sentences(labels: Sequence[str], template: str = PROMPT_TEMPLATE) -> list[str]:
    """Return the sentences that are compared with the frames.

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
    """Score every frame in scope against each label's vector; see :meth:`.SearchService.label`."""
    sure = SURE if filter.min_probability is None else filter.min_probability
    by_video: dict[str, tuple[int, int, list[LabelScore]]] = {}
    with database.snapshot(reading=tables.frames(model.model_id)) as connection:
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
                    media_time_seconds=fit.best_seconds + fit.media_offset_seconds,
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
