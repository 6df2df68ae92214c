"""Equal content is worked on once, and the counts that must agree do, or are made to."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import dagster as dg
import PIL.Image
import pyarrow.parquet as pq
import pytest

from siglip_pipeline.defs.checks import check_frames
from siglip_pipeline.defs.metadata import frames_metadata, sampling_metadata
from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.errors import UploadError, UploadsUnavailableError, VideoError
from siglip_pipeline.records import Stage, Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages import frame_sampling
from siglip_pipeline.stages.frame_embedding import VectorsStored, embed_videos
from siglip_pipeline.stages.frame_sampling import FramesOutcome, FramesStored, sample_videos
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.freshness import Wanted, out_of_date
from siglip_pipeline.stages.reconcile import InDagster, reconcile
from siglip_pipeline.stages.removal import forget_video
from siglip_pipeline.stages.stage_results import NoFrames
from siglip_pipeline.stages.status import StatusOptions, collect_status
from siglip_pipeline.store.announced import AnnouncedUploads
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video import frame_file
from siglip_pipeline.video.extract import extract_many
from siglip_pipeline.video.frame_store import FrameStore


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return render_video(path, demo_scenes()[:2], seconds_per_scene=2, fps=10).path


@dataclass
class Bench:
    """The two stages over a folder, and what they were asked for."""

    settings: Settings
    database: Database
    model_id: int
    model_key: str
    engines: list[EmbeddingEngine] = field(default_factory=list)
    looked_ahead: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def uploads(self) -> UploadStore:
        return UploadStore(self.settings.uploads, settle_seconds=0)

    @property
    def frames(self) -> FrameStore:
        return FrameStore(self.settings.frame_store_url)

    @property
    def folder(self) -> Path:
        return Path(self.settings.uploads)

    def sample(self, *videos: str, force: bool = False) -> dict[str, FramesOutcome]:
        AnnouncedUploads(self.database).register(self.uploads.get(video) for video in videos)
        results = sample_videos(
            videos,
            uploads=self.uploads,
            frame_store=self.frames,
            database=self.database,
            options=FramesOptions.from_settings(self.settings),
            force=force,
        )
        return {result.video: result for result in results}

    def embed(
        self, *videos: str, ahead: tuple[str, ...] = (), force: bool = False
    ) -> dict[str, VectorsStored | VideoError]:
        def engine() -> EmbeddingEngine:
            self.engines.append(
                EmbeddingEngine(get_model(ModelOptions.from_settings(self.settings)))
            )
            return self.engines[-1]

        def look_ahead() -> tuple[str, ...]:
            self.looked_ahead.append(videos)
            return ahead

        results = embed_videos(
            videos,
            frame_store=self.frames,
            database=self.database,
            model_id=self.model_id,
            model_key=self.model_key,
            engine=engine,
            ahead=look_ahead,
            force=force,
        )
        return {result.video: result for result in results}


@pytest.fixture
def bench(tmp_path: Path, database: Database, database_url: str) -> Bench:
    (tmp_path / "uploads").mkdir()
    settings = Settings.load(
        home=tmp_path / "home",
        uploads=str(tmp_path / "uploads"),
        database_url=database_url,
        model_name=str(MODEL_FOLDER),
        decode_workers=1,
    )
    spec = model_spec(ModelOptions.from_settings(settings))
    return Bench(settings, database, ModelStore(database).register(spec), spec.key)


def _from(result: FramesOutcome | VectorsStored) -> str | None:
    assert isinstance(result, FramesStored | VectorsStored), result
    return result.reused_from


def test_a_duplicate_takes_over_frames_and_vectors(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    assert _from(bench.sample("a.mp4")["a.mp4"]) is None
    assert _from(bench.embed("a.mp4")["a.mp4"]) is None
    (bench.folder / "moved").mkdir()
    (bench.folder / "a.mp4").rename(bench.folder / "moved" / "b.mp4")
    sampled = bench.sample("moved/b.mp4")["moved/b.mp4"]
    assert _from(sampled) == "a.mp4"
    assert isinstance(sampled, FramesStored)
    assert sampled.report is None
    engines = len(bench.engines)
    assert _from(bench.embed("moved/b.mp4")["moved/b.mp4"]) == "a.mp4"
    assert len(bench.engines) == engines, "a model was asked for"

    # The old name's end does not touch the new one.
    forget_video(bench.database, bench.frames, "a.mp4")
    assert not bench.frames.exists("a.mp4")
    assert bench.frames.metadata("moved/b.mp4").frames == 4
    vectors = VectorStore(bench.database).vectors(bench.model_id, "moved/b.mp4")
    assert vectors.embeddings_ND.shape == (4, 128)


def test_duplicates_in_one_batch_are_worked_on_once(bench: Bench, film: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copyfile(film, bench.folder / name)
    # As long as the film, and something else.
    (bench.folder / "other.mp4").write_bytes(b"x" * film.stat().st_size)
    sampled = bench.sample("a.mp4", "b.mp4", "c.mp4", "other.mp4")
    assert isinstance(sampled["other.mp4"], NoFrames)
    assert [_from(sampled[name]) for name in ("a.mp4", "b.mp4", "c.mp4")] == [
        *(None, "a.mp4", "a.mp4"),
    ]
    embedded = bench.embed("a.mp4", "b.mp4", "c.mp4")
    assert [_from(embedded[name]) for name in ("a.mp4", "b.mp4", "c.mp4")] == [
        *(None, "a.mp4", "a.mp4"),
    ]
    assert bench.engines[0].report is not None
    assert bench.engines[0].report.frames == 4


def test_broken_duplicates_fail_with_the_same_reason(bench: Bench) -> None:
    for name in ("a.mp4", "b.mp4"):
        (bench.folder / name).write_bytes(b"no film at all")
    sampled = bench.sample("a.mp4", "b.mp4")
    reasons = {result.reason for result in sampled.values() if isinstance(result, NoFrames)}
    (reason,) = reasons
    assert "not a video" in reason
    assert {f.video: f.reason for f in VideoStore(bench.database).failures()} == {
        "a.mp4": reason,
        "b.mp4": reason,
    }


def test_a_duplicate_of_what_is_replaced_while_it_is_decoded_gets_its_own_frames(
    bench: Bench, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "b.mp4"):
        shutil.copyfile(film, bench.folder / name)
    new = render_video(bench.folder.parent / "new.mp4", demo_scenes()[3:4], seconds_per_scene=3)

    def replaced(uploads: Sequence[Upload], *arguments: Any, **options: Any) -> Any:
        if (bench.folder.parent / "new.mp4").exists():
            new.path.rename(bench.folder / "a.mp4")
        return extract_many(uploads, *arguments, **options)

    monkeypatch.setattr(frame_sampling, "extract_many", replaced)
    sampled = bench.sample("a.mp4", "b.mp4")
    assert all(isinstance(outcome, FramesStored) for outcome in sampled.values())
    for name, frames in (("a.mp4", 3), ("b.mp4", 4)):
        stored = bench.frames.metadata(name)
        assert (stored.frames, stored.source_sha256) == (frames, bench.uploads.sha256(name))


def test_a_file_that_is_none_has_no_frames_and_no_vectors(bench: Bench, film: Path) -> None:
    (bench.folder / "a.mp4").write_bytes(b"no film at all")
    sampled = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(sampled, NoFrames)
    assert (sampled.kept, sampled.data_version) == (None, "no-frames")
    embedded = bench.embed("a.mp4")["a.mp4"]
    assert isinstance(embedded, VectorsStored)
    assert (embedded.frames, embedded.vectors) == (0, 0)
    assert embedded.without_frames == sampled.reason
    assert not bench.engines, "a model was asked for"
    # A video that was never sampled does not count: whether it has frames is unknown.
    assert isinstance(bench.embed("b.mp4")["b.mp4"], VideoError)
    assert [f.stage for f in VideoStore(bench.database).failures() if f.video == "a.mp4"] == [
        Stage.FRAMES
    ]

    # A good file clears it, and what it gave outlives a bad one, also one that is taken back.
    shutil.copyfile(film, bench.folder / "a.mp4")
    good = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(good, FramesStored)
    kept = bench.folder.parent / "kept.mp4"
    (bench.folder / "a.mp4").rename(kept)
    (bench.folder / "a.mp4").write_bytes(b"no film either")
    bad = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(bad, NoFrames)
    assert bad.data_version == good.data_version
    embedded = bench.embed("a.mp4")["a.mp4"]
    assert isinstance(embedded, VectorsStored)
    assert embedded.vectors == 4
    assert VideoStore(bench.database).states()["a.mp4"] == "failed"
    kept.rename(bench.folder / "a.mp4")
    assert isinstance(bench.sample("a.mp4")["a.mp4"], FramesStored)
    assert VideoStore(bench.database).states()["a.mp4"] != "failed"


def test_storage_that_is_gone_is_no_fault_of_files(
    bench: Bench, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    shutil.copyfile(film, bench.folder / "b.mp4")
    AnnouncedUploads(bench.database).register(bench.uploads.list())
    options = FramesOptions.from_settings(bench.settings)

    def sample(video: str) -> FramesOutcome:
        (result,) = sample_videos(
            [video],
            uploads=bench.uploads,
            frame_store=bench.frames,
            database=bench.database,
            options=options,
        )
        return result

    def refuse(store: UploadStore, path: str) -> BinaryIO:
        raise UploadError(f"{path}: cannot be opened: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(UploadStore, "open", refuse)
        refused = sample("a.mp4")
    assert isinstance(refused, VideoError)
    assert refused.retryable
    # A deleted file is not an upload any more; an empty folder is assumed to be unmounted.
    (bench.folder / "a.mp4").unlink()
    assert isinstance(sample("a.mp4"), NoFrames)
    (bench.folder / "b.mp4").unlink()
    with pytest.raises(UploadsUnavailableError, match="mounted"):
        sample("b.mp4")


def test_what_is_current_is_not_done_again(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    (first,) = bench.sample("a.mp4").values()
    assert isinstance(first, FramesStored)
    assert first.report is not None
    bench.embed("a.mp4")
    (again,) = bench.sample("a.mp4").values()
    assert isinstance(again, FramesStored)
    assert again.report is None, "it was decoded again"
    assert again.data_version == first.data_version
    (embedded,) = bench.embed("a.mp4").values()
    assert isinstance(embedded, VectorsStored)
    assert not embedded.written
    assert len(bench.engines) == 1, "a model was asked for again"


def test_force_does_everything_again(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    shutil.copyfile(film, bench.folder / "b.mp4")
    bench.sample("a.mp4", "b.mp4")
    bench.embed("a.mp4", "b.mp4")
    sampled = bench.sample("b.mp4", force=True)["b.mp4"]
    assert isinstance(sampled, FramesStored)
    assert sampled.report is not None
    embedded = bench.embed("b.mp4", force=True)["b.mp4"]
    assert isinstance(embedded, VectorsStored)
    assert embedded.written
    assert embedded.reused_from is None


def test_ahead_is_done_too_and_costs_nothing_when_it_is_not_there(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    scenes = demo_scenes()[2:3]
    render_video(bench.folder / "b.mp4", scenes, seconds_per_scene=2, fps=10)
    bench.sample("a.mp4", "b.mp4")
    done = bench.embed("a.mp4", ahead=("b.mp4", "never-sampled.mp4"))
    assert set(done) == {"a.mp4", "b.mp4"}
    assert len(bench.engines) == 1
    assert VideoStore(bench.database).failures() == []
    again = bench.embed("b.mp4")["b.mp4"]
    assert isinstance(again, VectorsStored)
    assert not again.written
    assert len(bench.engines) == 1
    # With nothing to embed, or with force, videos of waiting runs are not looked up.
    bench.embed("a.mp4", force=True)
    assert bench.looked_ahead == [("a.mp4",)]


def test_what_is_out_of_date_is_what_the_settings_changed(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    bench.sample("a.mp4")
    # Its vectors are pending, not out of date.
    assert out_of_date(bench.database, Wanted.from_settings(bench.settings)).videos == []
    bench.embed("a.mp4")
    assert out_of_date(bench.database, Wanted.from_settings(bench.settings)).videos == []
    folder = Path(bench.settings.model_name)
    moved = Path(shutil.copytree(folder, bench.folder.parent / "moved" / folder.name))
    cases: list[tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
        ({"sampling": "fps:2"}, ("a.mp4",), ()),
        ({"jpeg_quality": 80}, ("a.mp4",), ()),
        ({"model_name": "another/model"}, (), ("a.mp4",)),
        ({"model_name": str(moved)}, (), ()),
        ({"index_kind": "hnsw"}, (), ()),
    ]
    for change, frames, vectors in cases:
        found = out_of_date(
            bench.database, Wanted.from_settings(bench.settings.model_copy(update=change))
        )
        assert (found.frames, found.vectors) == (frames, vectors), change


def _out_of_date(bench: Bench) -> list[str]:
    listing = bench.uploads.list()
    return out_of_date(bench.database, Wanted.from_settings(bench.settings), listing=listing).videos


def test_a_file_that_was_touched_is_hashed_and_not_decoded(bench: Bench, film: Path) -> None:
    file = bench.folder / "a.mp4"
    shutil.copyfile(film, file)
    bench.sample("a.mp4")
    bench.embed("a.mp4")
    assert _out_of_date(bench) == []
    for touch in _touches(bench, file):
        touch()
        assert _out_of_date(bench) == ["a.mp4"]
        again = bench.sample("a.mp4")["a.mp4"]
        assert isinstance(again, FramesStored)
        assert (again.report, again.reused_from) == (None, None)
        assert _out_of_date(bench) == []
    # Damaged frames are made again, whatever the file's hash.
    file.touch()
    frames = next(Path(urlsplit(bench.frames.address("a.mp4")).path).parent.glob("*.parquet"))
    frames.write_bytes(frames.read_bytes()[:-9])
    assert _report_of(bench.sample("a.mp4")["a.mp4"]) is not None


def test_a_failed_file_that_was_touched_is_hashed_and_not_decoded(bench: Bench) -> None:
    file = bench.folder / "a.mp4"
    file.write_bytes(b"no film at all")
    reason = _reason(bench)

    def decodes() -> bool:
        with bench.database.connection() as connection:
            connection.execute("UPDATE failures SET reason = 'as before'")
        assert _reason(bench) in ("as before", reason)
        assert (
            out_of_date(
                bench.database, Wanted.from_settings(bench.settings), listing=bench.uploads.list()
            ).frames
            == ()
        )
        return _stored_reason(bench) != "as before"

    for touch in _touches(bench, file):
        touch()
        assert _out_of_date(bench) == ["a.mp4"]
        assert not decodes()
    assert decodes(), "an unchanged file was asked for, which is a wish to try again"
    file.touch()
    bench.settings = bench.settings.model_copy(update={"min_decodable_share": 0.1})
    assert decodes(), "it can succeed under other settings"
    file.write_bytes(b"no film, again")
    assert decodes(), "it is other content of the same size"


def _reason(bench: Bench) -> str:
    result = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(result, NoFrames)
    return result.reason


def _stored_reason(bench: Bench) -> str:
    [failure] = VideoStore(bench.database).failures()
    return failure.reason


def _touches(bench: Bench, file: Path) -> list[Callable[[], object]]:
    """What changes a file's times or inode and not its content."""
    return [
        file.touch,
        lambda: file.chmod(0o600),
        lambda: _written_anew(file),
        lambda: _mounted_anew(bench.database),
    ]


def _written_anew(file: Path) -> None:
    status = file.stat()
    copy = file.with_name("copy.tmp")
    shutil.copyfile(file, copy)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(file)


def _mounted_anew(database: Database) -> None:
    """As if the file system had made up other inodes before."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE videos SET listed_fingerprint = listed_fingerprint || '1',"
            " source_fingerprint = source_fingerprint || '1'"
        )
        connection.execute("UPDATE failures SET source_fingerprint = source_fingerprint || '1'")


def _report_of(result: FramesStored | NoFrames | VideoError) -> object:
    assert isinstance(result, FramesStored), result
    return result.report


def test_other_content_of_the_same_size_and_time_is_decoded(bench: Bench) -> None:
    file = bench.folder / "a.bmp"
    PIL.Image.new("RGB", (64, 48), "red").save(file)
    bench.sample("a.bmp")
    red, status = file.read_bytes(), file.stat()
    PIL.Image.new("RGB", (64, 48), "blue").save(file)
    assert len(file.read_bytes()) == len(red)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert _out_of_date(bench) == ["a.bmp"]
    assert _report_of(bench.sample("a.bmp")["a.bmp"]) is not None


@pytest.mark.parametrize("form", [0, 1], ids=["without ctime", "without inode"])
def test_fingerprints_of_an_earlier_version_still_hold(form: int, bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    bench.sample("a.mp4")
    bench.embed("a.mp4")
    earlier = bench.uploads.get("a.mp4").fingerprints[form]
    assert earlier != bench.uploads.get("a.mp4").fingerprint
    with bench.database.connection() as connection:
        connection.execute(
            "UPDATE videos SET source_fingerprint = %(it)s, listed_fingerprint = %(it)s",
            {"it": earlier},
        )
    assert _out_of_date(bench) == []
    # Decoded anew without a listing: what was announced of the same file is completed as well.
    options = FramesOptions.from_settings(bench.settings)
    stores = {"uploads": bench.uploads, "frame_store": bench.frames, "database": bench.database}
    (again,) = sample_videos(["a.mp4"], **stores, options=options, force=True)  # type: ignore[arg-type]
    assert _report_of(again) is not None
    assert _out_of_date(bench) == []
    _mounted_anew(bench.database)
    assert _out_of_date(bench) == ["a.mp4"]


def test_the_failure_of_an_earlier_version_is_completed(bench: Bench) -> None:
    (bench.folder / "a.mp4").write_bytes(b"no film at all")
    bench.sample("a.mp4")
    with bench.database.connection() as connection:
        connection.execute(
            "UPDATE failures SET source_fingerprint = %s",
            [bench.uploads.get("a.mp4").fingerprints[1]],
        )
    assert _out_of_date(bench) == []
    AnnouncedUploads(bench.database).restate(bench.uploads.list())
    assert VideoStore(bench.database).fingerprints() == {
        "a.mp4": bench.uploads.get("a.mp4").fingerprint
    }


def test_warnings_stay_with_the_frames_until_the_video_is_good(bench: Bench, film: Path) -> None:
    warnings = ("a second video track is left out", "colours are approximate")
    shutil.copyfile(film, bench.folder / "a.mp4")
    good = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(good, FramesStored)
    assert _warned_of(bench, good) == ((), True)
    # As if its decoder had warned.
    (file,) = Path(bench.settings.frame_store_url).glob("*.parquet")
    table = pq.read_table(file)
    description = json.loads(table.schema.metadata[frame_file.METADATA_KEY])
    told = json.dumps(description | {"warnings": [*warnings, "\u202e" + "x" * 9999]}).encode()
    pq.write_table(table.replace_schema_metadata({frame_file.METADATA_KEY: told}), file)
    shutil.copyfile(film, bench.folder / "b.mp4")
    taken = bench.sample("b.mp4")["b.mp4"]
    assert isinstance(taken, FramesStored)
    assert taken.reused_from == "a.mp4"
    found, passed = _warned_of(bench, taken)
    assert found[:2] == warnings
    assert found[2].startswith("\\u202exxx")
    assert len(found[2]) < 600
    assert not passed
    metadata = frames_metadata(taken, bench.frames)
    assert metadata["warnings"] == [*found]
    status = collect_status(bench.database, StatusOptions.from_settings(bench.settings))
    assert [(v.video, v.warnings) for v in status.video_warnings] == [("b.mp4", found)]
    document = to_json(status.document())["video_warnings"]
    assert document == [{"video": "b.mp4", "warnings": [*found]}]
    again = bench.sample("b.mp4", force=True)["b.mp4"]
    assert isinstance(again, FramesStored)
    assert _warned_of(bench, again) == ((), True)
    status = collect_status(bench.database, StatusOptions.from_settings(bench.settings))
    assert status.video_warnings == ()


def test_uploads_that_are_no_folder_are_a_warning(database: Database, tmp_path: Path) -> None:
    """A name that was misspelt showed as a collection without videos."""
    (tmp_path / "film.mp4").write_bytes(b"")
    for uploads, warned in (
        (tmp_path, False),
        (tmp_path / "film.mp4", True),
        (tmp_path / "a", True),
    ):
        options = StatusOptions.from_settings(Settings.load(uploads=str(uploads)))
        said = any("SIGLIP_UPLOADS" in text for text in collect_status(database, options).warnings)
        assert said == warned, uploads


def _warned_of(bench: Bench, result: FramesStored) -> tuple[tuple[str, ...], bool]:
    """What the row says, and whether the check passes."""
    row = VideoStore(bench.database).get(result.video)
    assert row is not None
    (check,) = (check for check in check_frames(result) if check.name == "footage_is_whole")
    assert check.severity is dg.AssetCheckSeverity.WARN
    return tuple(row.warnings), check.passed


def _reconcile(bench: Bench, partitions: set[str], busy: frozenset[str] = frozenset()) -> object:
    found = reconcile(
        uploads=bench.uploads,
        frame_store=bench.frames,
        database=bench.database,
        in_dagster=lambda: InDagster(partitions=partitions, busy=busy),
        awaited_seconds=0,
        pause_seconds=0,
    )
    return [(d.video, d.repair) for d in found.differences]


def test_reconciliation_finds_what_was_skipped_and_has_it_taken_up_again(
    bench: Bench, film: Path
) -> None:
    names = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    for name in names:
        shutil.copyfile(film, bench.folder / name)
    bench.sample("a.mp4", "b.mp4")
    bench.embed("a.mp4", "b.mp4")
    with bench.database.connection() as connection:
        connection.execute("UPDATE models SET is_active = true")
    announced = AnnouncedUploads(bench.database)
    assert _reconcile(bench, {"a.mp4", "b.mp4"}) == []

    bench.frames.delete("a.mp4")
    with bench.database.connection() as connection:
        connection.execute(
            f"DELETE FROM frames_{bench.model_id} WHERE frame_index = 0 AND video_id ="
            " (SELECT video_id FROM videos WHERE path = 'b.mp4')"
        )
    announced.register([bench.uploads.get("c.mp4")])
    again = "taken up again"
    assert _reconcile(bench, {*names[:3], "ghost.mp4"}, frozenset({"c.mp4"})) == [
        ("a.mp4", again),
        ("ghost.mp4", "partition removed"),
        ("b.mp4", again),
    ]
    # c was left alone while a run had it; d is new, and the sensor's.
    assert {path for path, said in announced.listed_fingerprints().items() if said} == {"c.mp4"}
    assert ("c.mp4", again) in _reconcile(bench, set(names[:3]))  # type: ignore[operator]

    # What may be on its way is awaited: c's run, and, of what is only sampled, the vectors.
    bench.sample("d.mp4")
    found = reconcile(
        uploads=bench.uploads,
        frame_store=bench.frames,
        database=bench.database,
        in_dagster=lambda: InDagster(partitions=set(names)),
        pause_seconds=0,
    )
    assert not {"c.mp4", "d.mp4"} & {d.video for d in found.differences}
    assert ("d.mp4", again) in _reconcile(bench, set(names))  # type: ignore[operator]

    bench.sample("a.mp4", "b.mp4")
    embedded = bench.embed("a.mp4", "b.mp4")
    assert isinstance(embedded["b.mp4"], VectorsStored)
    assert embedded["b.mp4"].written
    assert VectorStore(bench.database).summary(bench.model_id, "b.mp4").vectors == 4


def test_what_dagster_shows_of_frames(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a b.mp4")
    (stored,) = bench.sample("a b.mp4").values()
    assert isinstance(stored, FramesStored)
    shown = frames_metadata(stored, bench.frames)
    # A number is plotted over time, and would jump from one video to the next.
    numbers = {n for n, v in shown.items() if isinstance(v, int | float) and v is not True}
    assert numbers - {"reused"} == {"dagster/row_count"}
    assert shown["dagster/row_count"] == 4
    address = urlsplit(shown["dagster/uri"])
    assert address.scheme == "file"
    assert pq.read_table(address.path).num_rows == 4
    assert (shown["duration"], shown["damaged"]) == ("4.0 s", "0.00%")
    totals = sampling_metadata([stored, VideoError("b.mp4", "no film")], seconds=2)
    assert (totals["videos"], totals["failed_videos"], totals["frames"]) == (2, 1, 4)
    assert totals["video_seconds_per_second"] == 2.0


def test_vectors_that_are_current_have_not_failed(bench: Bench, film: Path) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    store = VideoStore(bench.database)
    bench.sample("a.mp4")
    bench.embed("a.mp4")
    bench.frames.delete("a.mp4")
    assert isinstance(bench.embed("a.mp4")["a.mp4"], VideoError)
    assert [failure.stage for failure in store.failures()] == [Stage.VECTORS]
    # The same frames again need no other vectors.
    bench.sample("a.mp4")
    embedded = bench.embed("a.mp4")["a.mp4"]
    assert isinstance(embedded, VectorsStored)
    assert not embedded.written
    assert store.failures() == []
    assert store.states()["a.mp4"] != "failed"


def test_a_bad_file_has_not_failed_for_want_of_frames(bench: Bench) -> None:
    assert isinstance(bench.embed("a.mp4")["a.mp4"], VideoError)
    (bench.folder / "a.mp4").write_bytes(b"no film at all")
    bench.sample("a.mp4")
    assert isinstance(bench.embed("a.mp4")["a.mp4"], VectorsStored)
    assert [failure.stage for failure in VideoStore(bench.database).failures()] == [Stage.FRAMES]


def test_damaged_frames_are_made_again_though_their_footer_is_whole(
    bench: Bench, film: Path
) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    bench.sample("a.mp4")
    whole = next(iter(bench.frames.read("a.mp4"))).jpegs
    (file,) = Path(bench.frames.url).glob("*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:9000] + bytes(4096) + content[13096:])
    failed = bench.embed("a.mp4")["a.mp4"]
    assert isinstance(failed, VideoError)
    assert "is damaged" in failed.reason
    store = VideoStore(bench.database)
    assert [failure.video for failure in store.failures()] == ["a.mp4"]
    assert out_of_date(bench.database, Wanted.from_settings(bench.settings)).frames == ("a.mp4",)
    assert AnnouncedUploads(bench.database).listed_fingerprints() == {"a.mp4": ""}, (
        "the sensor takes it up again"
    )
    # A duplicate of it does not get them either.
    shutil.copyfile(film, bench.folder / "b.mp4")
    assert _from(bench.sample("b.mp4")["b.mp4"]) is None
    assert _from(bench.sample("a.mp4")["a.mp4"]) == "b.mp4"
    assert next(iter(bench.frames.read("a.mp4"))).jpegs == whole
    assert isinstance(bench.embed("a.mp4")["a.mp4"], VectorsStored)
    assert store.failures() == []
    # Sampling verifies all frames before it reports them as current.
    (file,) = Path(bench.frames.url).glob("a.mp4*.parquet")
    file.write_bytes(content[:9000] + bytes(4096) + content[13096:])
    bench.sample("a.mp4")
    assert next(iter(bench.frames.read("a.mp4"))).jpegs == whole


def test_frames_of_a_newer_version_are_left_alone_and_of_an_older_one_made_anew(
    bench: Bench, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(film, bench.folder / "a.mp4")
    bench.sample("a.mp4")
    (file,) = Path(bench.settings.frame_store_url).glob("*.parquet")
    before = file.read_bytes()

    # To a program of version 0, this file is of the future.
    monkeypatch.setattr(frame_file, "SCHEMA_VERSION", 0)
    for outcome in (bench.sample("a.mp4")["a.mp4"], bench.embed("a.mp4")["a.mp4"]):
        assert isinstance(outcome, VideoError)
        assert "schema version 2, this program reads up to 0; upgrade" in outcome.reason
    found = reconcile(
        uploads=bench.uploads,
        frame_store=bench.frames,
        database=bench.database,
        in_dagster=lambda: InDagster(partitions={"a.mp4"}),
        pause_seconds=0,
    )
    assert [difference.repair for difference in found.differences] == ["reported"]
    assert file.read_bytes() == before

    monkeypatch.undo()

    # A file of the past, from before the oldest version that is read.
    table = pq.read_table(file)
    description = json.loads(table.schema.metadata[frame_file.METADATA_KEY])
    old = json.dumps(description | {"schema_version": 0}).encode()
    pq.write_table(table.replace_schema_metadata({frame_file.METADATA_KEY: old}), file)
    (outcome,) = bench.embed("a.mp4").values()
    assert isinstance(outcome, VideoError)
    assert "reads from 1 on; materialize video_frames again" in outcome.reason
    outcome = bench.sample("a.mp4")["a.mp4"]
    assert isinstance(outcome, FramesStored)
    assert outcome.report is not None, "it was not decoded again"
    assert bench.frames.metadata("a.mp4").schema_version == frame_file.SCHEMA_VERSION
