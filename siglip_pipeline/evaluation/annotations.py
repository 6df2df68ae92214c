"""Read annotation files of public benchmarks, in the form in which they are published.

Each reader is tested on small made files of its form; docs/quality.md has the sources, and says how
the publishers define their metrics. Videos are named as the benchmark names them; the evaluation
matches them with uploads of that path, or of that file name without its suffix.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from siglip_pipeline.errors import JudgedQueriesError
from siglip_pipeline.evaluation.judged_queries import (
    JudgedQueries,
    JudgedQuery,
    RelevantMoment,
    json_documents,
    read_json_lines,
    read_text,
    text_query,
    wrong,
)

DIDEMO_SEGMENT_SECONDS = 5.0
"""Annotators of DiDeMo chose among segments of this length."""
_CHARADES_LINE = re.compile(r"(?P<video>\S+)\s+(?P<start>\S+)\s+(?P<end>[^\s#]+)##(?P<text>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationForm:
    """A published form of annotations."""

    read: Callable[[Path], Iterator[JudgedQuery]]
    metrics: tuple[str, ...]
    """The metrics of its publishers, by the names of :mod:`.metrics`."""


def read_judged(path: Path, form: str = "judged") -> JudgedQueries:
    """Return the judged queries of a file.

    Args:
        path: the file.
        form: ``judged`` for our JSON Lines, or a key of :data:`FORMS`.

    Raises:
        JudgedQueriesError: an unknown form, or a file that does not fit it; names the line, or in a
            file that is one JSON document the entry.
    """
    if form == "judged":
        return JudgedQueries(name=path.name, queries=read_json_lines(path))
    if form not in FORMS:
        raise JudgedQueriesError(
            f"there is no form {form!r}; allowed are judged, {', '.join(FORMS)}"
        )
    published = FORMS[form]
    queries = tuple(published.read(path))
    if not queries:
        raise JudgedQueriesError(f"{path} holds no queries of the form {form}")
    return JudgedQueries(name=path.name, queries=queries, metrics=published.metrics)


def _qvhighlights(path: Path) -> Iterator[JudgedQuery]:
    for line, entry in json_documents(path):
        with _Entry(path, line, entry) as e:
            video = e.text("vid")
            windows = [e.times(window) for window in e.list("relevant_windows")]
            relevant = [_moment(video, times) for times in windows]
            yield text_query(path, line, e.text("query"), relevant, videos=[video])


def _charades_sta(path: Path) -> Iterator[JudgedQuery]:
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        match = _CHARADES_LINE.fullmatch(text.strip())
        if match is None:
            raise wrong(path, line, f"{text[:60]!r} is not VIDEO START END##SENTENCE")
        with _Entry(path, line, {}) as e:
            times = e.times([match["start"], match["end"]])
            relevant = [_moment(match["video"], times)]
            yield text_query(path, line, match["text"], relevant, videos=[match["video"]])


def _didemo(path: Path) -> Iterator[JudgedQuery]:
    for number, entry in _json_list(path):
        with _Entry(path, number, entry) as e:
            video = e.text("video")
            spans = Counter(e.times(times) for times in e.list("times"))
            relevant = [
                RelevantMoment(
                    video=video,
                    start_seconds=first * DIDEMO_SEGMENT_SECONDS,
                    end_seconds=(last + 1) * DIDEMO_SEGMENT_SECONDS,
                    grade=annotators,
                )
                for (first, last), annotators in spans.items()
            ]
            yield text_query(path, number, e.text("description"), relevant, videos=[video])


def _activitynet_captions(path: Path) -> Iterator[JudgedQuery]:
    document = _json(path)
    if not isinstance(document, dict):
        raise wrong(path, None, "give a JSON object with an entry for each video")
    number = 0
    for video, entry in document.items():
        with _Entry(path, number + 1, entry) as e:
            sentences, stamps = e.list("sentences"), e.list("timestamps")
            if len(sentences) != len(stamps):
                raise wrong(
                    path,
                    number + 1,
                    f"{video!r} has {len(sentences)} sentences and {len(stamps)} timestamps; each "
                    "sentence needs one",
                )
            for sentence, times in zip(sentences, stamps, strict=True):
                number += 1
                # Some captions of the published files have their times exchanged.
                start, end = sorted(e.times(times))
                yield text_query(
                    path,
                    number,
                    str(sentence).strip(),
                    [_moment(video, (start, end))],
                    videos=[video],
                )


def _tvr_ranking(path: Path) -> Iterator[JudgedQuery]:
    """Read entries with ``relevant_moment``; relevance 0 to 4 has the gain 2**relevance - 1."""
    for number, entry in _json_list(path):
        with _Entry(path, number, entry) as e:
            relevant = []
            for moment in e.list("relevant_moment"):
                of = _Entry(path, number, moment)
                relevance = int(of.number("relevance"))
                if relevance > 0:
                    times = of.times(of.list("timestamp"))
                    relevant.append(_moment(of.text("video_name"), times, 2**relevance - 1))
            yield text_query(path, number, e.text("query"), relevant)


def _momentseeker(path: Path) -> Iterator[JudgedQuery]:
    """Read the text queries: those with a picture or a video need files beside the annotations."""
    for number, entry in _json_list(path):
        with _Entry(path, number, entry) as e:
            if entry.get("qry_img_path") or entry.get("qry_video_path"):
                continue
            clips = e.list("candidate_video_list")
            right = [clips[int(index)] for index in e.list("gt_indices")]
            relevant = [_clip_moment(e, clip) for clip in right]
            videos = sorted({moment.video for moment in relevant})
            yield text_query(path, number, e.text("qry_text"), relevant, videos=videos)


def _clip_moment(e: "_Entry", clip: Mapping[str, Any]) -> RelevantMoment:
    """Return the moment of a clip ``…/VIDEO/START_END.mp4``."""
    place = PurePosixPath(str(clip["output_path"]))
    return _moment(place.parent.name, e.times(place.stem.split("_")))


def _msrvtt_1ka(path: Path) -> Iterator[JudgedQuery]:
    rows = csv.DictReader(io.StringIO(read_text(path)))
    for row in rows:
        with _Entry(path, rows.line_num, row) as e:
            relevant = [RelevantMoment(video=e.text("video_id"))]
            yield text_query(path, rows.line_num, e.text("sentence"), relevant)


FORMS: dict[str, AnnotationForm] = {
    "qvhighlights": AnnotationForm(
        read=_qvhighlights, metrics=("R@1 IoU0.5", "R@1 IoU0.7", "mAP IoU0.5", "mAP IoU0.75")
    ),
    "charades-sta": AnnotationForm(
        read=_charades_sta,
        metrics=("R@1 IoU0.5", "R@1 IoU0.7", "R@5 IoU0.5", "R@5 IoU0.7", "IoU@1"),
    ),
    "didemo": AnnotationForm(
        read=_didemo,
        metrics=("R@1 IoU0.5", "R@1 IoU0.7", "R@5 IoU0.5", "R@5 IoU0.7", "IoU@1"),
    ),
    "activitynet-captions": AnnotationForm(
        read=_activitynet_captions,
        metrics=("R@1 IoU0.3", "R@1 IoU0.5", "R@1 IoU0.7", "R@5 IoU0.5", "IoU@1"),
    ),
    "tvr-ranking": AnnotationForm(
        read=_tvr_ranking, metrics=("nDCG@10 IoU0.3", "nDCG@20 IoU0.3", "nDCG@40 IoU0.3")
    ),
    "momentseeker": AnnotationForm(read=_momentseeker, metrics=("R@1 IoU0.3", "mAP@5 IoU0.3")),
    "msrvtt-1ka": AnnotationForm(
        read=_msrvtt_1ka, metrics=("video R@1", "video R@5", "video R@10")
    ),
}


class _Entry:
    """One entry of a file; as a context it turns errors of its form into ours."""

    def __init__(self, path: Path, line: int, entry: Any) -> None:
        self._path, self._line, self._entry = path, line, entry
        if not isinstance(entry, dict):
            raise wrong(path, line, f"{str(entry)[:60]!r} is no JSON object")

    def __enter__(self) -> "_Entry":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, LookupError | TypeError | ValueError):
            raise wrong(
                self._path,
                self._line,
                f"{error} ({type(error).__name__}); the entry has not this form",
            ) from error

    def text(self, name: str) -> str:
        value = self._field(name)
        if not isinstance(value, str):
            raise wrong(self._path, self._line, f"{name}={value!r}: give a text")
        return value

    def list(self, name: str) -> Sequence[Any]:
        value = self._field(name)
        if not isinstance(value, list):
            raise wrong(self._path, self._line, f"{name}={value!r}: give a list")
        return value

    def number(self, name: str) -> float:
        value = self._field(name)
        if not isinstance(value, int | float):
            raise wrong(self._path, self._line, f"{name}={value!r}: give a number")
        return value

    def times(self, values: Sequence[Any]) -> tuple[float, float]:
        try:
            start, end = map(float, values)
        except (TypeError, ValueError):
            raise wrong(
                self._path, self._line, f"{values!r}: give a start and an end, two numbers"
            ) from None
        return start, end

    def _field(self, name: str) -> Any:
        if name not in self._entry:
            raise wrong(
                self._path,
                self._line,
                f"the field {name} is missing; there are {', '.join(map(str, self._entry))}",
            )
        return self._entry[name]


def _moment(video: str, times: tuple[float, float], grade: int = 1) -> RelevantMoment:
    return RelevantMoment(video=video, start_seconds=times[0], end_seconds=times[1], grade=grade)


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise wrong(path, None, f"no JSON ({error})") from error


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the entries of a JSON list, or of JSON Lines, numbered from 1."""
    if not read_text(path).lstrip().startswith("["):
        yield from json_documents(path)
        return
    yield from enumerate(_json(path), 1)
