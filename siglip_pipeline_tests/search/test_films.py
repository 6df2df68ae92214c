"""Search with the demo model over rendered films: every kind of query, labels, files, commands."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import pytest

from siglip_pipeline.cli import main as cli
from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import Hit
from siglip_pipeline.search import (
    ImageTerm,
    QueryEmbedder,
    SearchFilter,
    SearchOptions,
    SearchService,
    TextTerm,
)
from siglip_pipeline.search.export import Exported, export_hits
from siglip_pipeline.settings import Settings
from siglip_pipeline.similarity.compare import compare_videos
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.search.conftest import SECONDS, Films, query_frame
from siglip_pipeline_tests.video.copies import Transform, transformed_copy


def test_a_clip_of_two_scenes_finds_where_they_follow_each_other(
    films: Films, tmp_path: Path
) -> None:
    """Scenes 2 and 3 of six: 4 s to 8 s."""
    clip = tmp_path / "clip.mp4"
    transformed_copy(
        films.films["sub/two.mp4"].path, clip, Transform("part", part=(4.2 / 12, 7.8 / 12))
    )
    result = films.service.by_clip(clip, k=2)
    best = result.hits[0]
    assert best.video == "sub/two.mp4"
    assert 4 <= best.time_seconds < 8
    assert best.score > 0.9
    assert (best.start_seconds, best.end_seconds) == (4, 8), "one moment, not two"
    assert (result.query.clip_frames or 0) >= 6


def test_what_is_no_clip_is_refused(films: Films, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="no such file"):
        films.service.by_clip(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(QueryError, match="cannot be searched with"):
        films.service.by_clip(tmp_path / "text.mp4")


def test_a_picture_and_words_together(films: Films, tmp_path: Path) -> None:
    start, end, scene = films.films["one.mp4"].timeline[2]
    picture = query_frame(films.films["one.mp4"], start + 0.5, tmp_path / "q.png")
    result = films.service.by_mix([TextTerm(scene.caption), ImageTerm(picture)], k=1)
    assert result.hits[0].video == "one.mp4"
    assert start <= result.hits[0].time_seconds < end


def test_a_label_fits_the_scene_that_shows_it(films: Films) -> None:
    timeline = films.films["one.mp4"].timeline
    captions = [scene.caption for _, _, scene in timeline]
    report = films.service.label(captions, videos=["one.mp4"], template="{label}")
    by_label = {score.label: score for score in report.videos[0].labels}
    right = [start <= by_label[scene.caption].time_seconds < end for start, end, scene in timeline]
    assert sum(right) >= len(timeline) - 1, right


def _export(
    hits: Iterable[Hit], folder: Path, settings: Settings, *, clips: bool = False
) -> list[Exported]:
    return export_hits(
        hits,
        folder,
        frames=FrameStore(settings.frame_store_url),
        uploads=UploadStore(settings.uploads, settle_seconds=0),
        clips=clips,
    )


def test_hits_are_written_as_thumbnails(films: Films, tmp_path: Path) -> None:
    hits = films.service.by_moment("sub/two.mp4", 5, k=3).hits
    done = _export(hits, tmp_path / "out", films.settings)
    assert [file.reason for file in done] == [None] * 3
    first = done[0].path
    assert first is not None
    assert first.name == "001-sub_two.mp4-5.0s.jpg"
    assert first.read_bytes().startswith(b"\xff\xd8")


def test_hits_are_cut_out_to_the_frame(films: Films, tmp_path: Path) -> None:
    hit = films.service.by_moment("sub/two.mp4", 5, k=1).hits[0]
    (done,) = _export([hit], tmp_path, films.settings, clips=True)
    assert done.path is not None, done.reason
    length = hit.end_seconds - hit.start_seconds
    with av.open(str(done.path)) as clip, av.open(str(films.films["sub/two.mp4"].path)) as film:
        times = [frame.time for frame in clip.decode(video=0)]
        originals = [
            frame.time
            for frame in film.decode(video=0)
            if frame.time is not None and hit.start_seconds <= frame.time < hit.end_seconds
        ]
        assert len(times) == len(originals)
        assert times[0] == 0
        assert times[-1] == pytest.approx(length - 1 / 10, abs=0.02)
        assert clip.streams.video[0].codec_context.name == "h264"
    assert list(tmp_path.iterdir()) == [done.path]


def test_a_hit_whose_upload_is_gone_says_so_and_the_others_are_written(
    films: Films, tmp_path: Path
) -> None:
    hits = films.service.by_moment("one.mp4", 1, k=12).hits
    moved = films.settings.model_copy(update={"uploads": str(tmp_path / "uploads")})
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "one.mp4").write_bytes(films.films["one.mp4"].path.read_bytes())
    done = _export(hits, tmp_path / "out", moved, clips=True)
    for file in done:
        assert (file.path is None) == (file.video != "one.mp4")
        assert file.path is not None or "two.mp4" in str(file.reason)


def _run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    films: Films,
    *arguments: str,
) -> tuple[int, str]:
    for name, value in films.settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    code = exited.value.code
    return (code if isinstance(code, int) else 0), capsys.readouterr().out


def _json(*arguments: Any) -> Any:
    code, out = _run(*arguments, "--json")
    assert code == 0, out
    return json.loads(out)


def test_the_command_takes_all_filters(
    films: Films, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _json(
        monkeypatch,
        capsys,
        films,
        *("search", "--like", "one.mp4@1", "--video", "sub/*", "--from", "2", "--to", "6"),
        *("--since", "2000-01-01", "--until", "2100-01-01T12:00:00", "--per-video", "2"),
        *("--min-probability", "0", "--k", "5"),
    )
    assert 1 <= len(document["hits"]) <= 2
    assert {hit["video"] for hit in document["hits"]} == {"sub/two.mp4"}
    assert document["query"]["filter"] == {
        "videos": ["sub/*"],
        "from_seconds": 2,
        "to_seconds": 6,
        "uploaded_since": "2000-01-01T00:00:00+00:00",
        "uploaded_until": "2100-01-01T12:00:00+00:00",
        "min_probability": 0,
        "max_per_video": 2,
    }


def test_the_command_mixes_and_exports(
    films: Films,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    start, end, scene = films.films["one.mp4"].timeline[3]
    query = f'+"{scene.caption}" -"a blue background"^0.01'
    document = _json(
        monkeypatch, capsys, films, "search", query, "--k", "2", "--export", str(tmp_path)
    )
    assert [part["weight"] for part in document["query"]["mix"]] == [1, -0.01]
    assert start <= document["hits"][0]["time_seconds"] < end
    files = [Path(file["path"]) for file in document["exported"]]
    assert files
    assert all(file.is_file() for file in files)


def test_labels_are_printed_for_one_video_and_for_all(
    films: Films, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["a red circle", "a blue star"]
    document = _json(monkeypatch, capsys, films, "labels", "sub/two.mp4", *labels, "--sure", "0.2")
    options = SearchOptions.from_settings(films.settings)
    service = SearchService(
        films.database, options, embedder=QueryEmbedder(options.model, few_texts=True)
    )
    report = service.label(labels, videos=["sub/two.mp4"], filter=SearchFilter(min_probability=0.2))
    assert document == to_json(report)
    everything = _json(monkeypatch, capsys, films, "labels", "--all", *labels)
    assert [video["video"] for video in everything["videos"]] == ["one.mp4", "sub/two.mp4"]
    code, out = _run(monkeypatch, capsys, films, "labels", "--all", *labels)
    assert code == 0
    for text in ("one.mp4", "two.mp4", *labels, "probability"):
        assert text in out
    code, out = _run(monkeypatch, capsys, films, "labels", "one.mp4")
    assert code == 2


def test_nothing_found_is_said_and_is_no_error(
    films: Films, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = _run(monkeypatch, capsys, films, "search", "a red circle", "--min-probability", "1")
    assert code == 0
    assert "Nothing here" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "x", "--open"],
        ["search", '+"snow" people'],
        ["search", "x", "--video", "nothing*"],
        ["search", "x", "--min-probability", "2"],
    ],
)
def test_faults_are_one_document_and_exit_code_2(
    films: Films,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    code, out = _run(monkeypatch, capsys, films, *arguments, "--json")
    assert code == 2
    assert json.loads(out)["error"]["message"]


def test_duplicates_are_listed(
    films: Films, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two films of different scenes: there are none, and the command says so."""
    compare_videos(films.database, films.service.active_model().model_id)
    assert _json(monkeypatch, capsys, films, "duplicates") == {"segments": []}


def test_the_examples_in_the_documents_run(
    films: Films, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    for name, value in films.settings.environment().items():
        monkeypatch.setenv(name, value)
    root = Path(__file__).parents[2]
    monkeypatch.chdir(films.films["one.mp4"].path.parent)
    query_frame(films.films["one.mp4"], 1.0, Path("photo.png"))
    judged = '{"query": "a red circle", "relevant": [{"video": "one.mp4"}]}'
    Path("judged.jsonl").write_text(judged)
    try:
        for page in ("docs/search.md", "docs/quality.md", "README.md"):
            blocks = re.findall(r"```python\n(.*?)```", (root / page).read_text(), re.DOTALL)
            assert blocks, page
            for block in blocks:
                exec(compile(block, page, "exec"), {})
    finally:
        Path("photo.png").unlink()
        Path("judged.jsonl").unlink()
    assert "one.mp4" in capsys.readouterr().out


def test_a_moment_is_a_scene(films: Films) -> None:
    """The picture of a scene finds that scene, from its first to its last second."""
    hit = films.service.by_moment("one.mp4", 5, k=1).hits[0]
    assert hit.end_seconds - hit.start_seconds == pytest.approx(SECONDS, abs=1)
    assert (
        films.service.by_moment("one.mp4", 5, k=3, filter=SearchFilter(videos=("sub/*",)))
        .hits[0]
        .video
        == "sub/two.mp4"
    )
