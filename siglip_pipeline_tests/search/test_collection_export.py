"""The collection as files: what is read back is what is stored."""

import base64
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from siglip_pipeline.cli import main as cli
from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import dataset_files
from siglip_pipeline.search.collection_export import export_collection
from siglip_pipeline.search.dataset_files import write_fiftyone
from siglip_pipeline.settings import process_environment
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.partitioning import partition_frames
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.search.conftest import Films
from siglip_pipeline_tests.store import made


def test_parquet_holds_every_vector(films: Films, tmp_path: Path) -> None:
    target = tmp_path / "frames.parquet"
    done = export_collection(films.database, target)
    model = films.service.active_model()
    table = pq.read_table(target)
    assert table.num_rows == done.frames
    assert table.schema.metadata[b"model_key"].decode() == model.key == done.model_key
    assert set(table["model_key"].to_pylist()) == {model.key}
    for video in films.films:
        stored = VectorStore(films.database).vectors(model.model_id, video)
        rows = [row for row in table.to_pylist() if row["video"] == video]
        assert [row["frame_index"] for row in rows] == stored.frame_index_N.tolist()
        assert [row["time_seconds"] for row in rows] == stored.time_seconds_N.tolist()
        vectors_ND = np.array([row["vector"] for row in rows], np.float32)
        np.testing.assert_array_equal(vectors_ND, stored.embeddings_ND)


def test_the_files_are_the_same_from_one_table_and_from_partitions(
    database: Database, tmp_path: Path
) -> None:
    model_id = made.collection(database)
    build_index(database, model_id, options=made.index_options())
    before, after, some = (tmp_path / f"{name}.parquet" for name in ("before", "after", "some"))
    export_collection(database, before)
    assert partition_frames(database, model_id).videos == 12
    assert export_collection(database, after).frames == 12 * 24
    table = pq.read_table(before)
    assert pq.read_table(after).equals(table)
    export_collection(database, some, videos=["v0[37].mp4"])
    chosen = [video in ("v03.mp4", "v07.mp4") for video in table["video"].to_pylist()]
    assert pq.read_table(some).equals(table.filter(chosen))


def test_some_videos_are_chosen(films: Films, tmp_path: Path) -> None:
    target = tmp_path / "frames.parquet"
    assert export_collection(films.database, target, videos=["sub/**"]).videos == 1
    assert set(pq.read_table(target)["video"].to_pylist()) == {"sub/two.mp4"}
    with pytest.raises(QueryError, match=r"no\.mp4"):
        export_collection(films.database, target, videos=["no.mp4"])
    with pytest.raises(QueryError, match="cannot be written"):
        export_collection(films.database, tmp_path / "absent" / "frames.parquet")


def test_shards_hold_pictures_facts_and_vectors(
    films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_files, "FRAMES_PER_SHARD", 10)
    frames = FrameStore(films.settings.frame_store_url)
    done = export_collection(films.database, tmp_path, format="webdataset", frames=frames)
    shards = sorted(tmp_path.glob("frames-*.tar"))
    assert len(shards) == -(-done.frames // 10)
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                content = tar.extractfile(entry)
                assert content is not None
                samples.setdefault(key, {})[suffix] = content.read()
    assert len(samples) == done.frames
    model = films.service.active_model()
    for files in samples.values():
        facts = json.loads(files["json"])
        assert files["jpg"] == frames.thumbnail(facts["video"], facts["frame_index"])
        stored = VectorStore(films.database).vectors(model.model_id, facts["video"])
        row = stored.frame_index_N.tolist().index(facts["frame_index"])
        np.testing.assert_array_equal(np.load(io.BytesIO(files["npy"])), stored.embeddings_ND[row])


def test_an_earlier_export_leaves_nothing_behind(films: Films, tmp_path: Path) -> None:
    frames = FrameStore(films.settings.frame_store_url)
    (tmp_path / "shards").mkdir()
    (tmp_path / "dataset" / "data").mkdir(parents=True)
    old = tmp_path / "shards" / "frames-000009.tar"
    old_picture = tmp_path / "dataset" / "data" / "00000099-000000001.jpg"
    mine = [tmp_path / "shards" / "notes.txt", tmp_path / "dataset" / "data" / "holiday.jpg"]
    for path in (old, old_picture, *mine):
        path.write_bytes(b"x")
    export_collection(films.database, tmp_path / "shards", format="webdataset", frames=frames)
    export_collection(films.database, tmp_path / "dataset", format="fiftyone", frames=frames)
    assert not old.exists()
    assert not old_picture.exists()
    assert all(path.exists() for path in mine)


def test_the_dataset_of_fiftyone_holds_what_is_stored(films: Films, tmp_path: Path) -> None:
    frames = FrameStore(films.settings.frame_store_url)
    done = export_collection(films.database, tmp_path, format="fiftyone", frames=frames)
    model = films.service.active_model()
    about = json.loads((tmp_path / "metadata.json").read_text())
    assert "version" not in about, "FiftyOne would read the samples as documents of its database"
    assert about["info"]["model_key"] == model.key
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert (len(samples), len({sample["video"] for sample in samples})) == (
        done.frames,
        done.videos,
    )
    for sample in samples:
        picture = (tmp_path / sample["filepath"]).read_bytes()
        assert picture == frames.thumbnail(sample["video"], sample["frame_index"])
        stored = VectorStore(films.database).vectors(model.model_id, sample["video"])
        row = stored.frame_index_N.tolist().index(sample["frame_index"])
        assert sample["time_seconds"] == stored.time_seconds_N[row]
        # As fiftyone.core.utils.deserialize_numpy_array reads it.
        content = zlib.decompress(base64.b64decode(sample["embedding"]["$binary"]["base64"]))
        np.testing.assert_array_equal(np.load(io.BytesIO(content)), stored.embeddings_ND[row])


def test_an_empty_choice_is_a_dataset_without_samples(films: Films, tmp_path: Path) -> None:
    model = films.service.active_model()
    write_fiftyone(tmp_path, model, iter(()))
    assert json.loads((tmp_path / "samples.json").read_text()) == {"samples": []}


def _run(monkeypatch: pytest.MonkeyPatch, films: Films, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["siglip-pipeline", *arguments, "--json"])
    with process_environment(films.settings), pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_exports(
    films: Films,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "frames.parquet"
    assert not _run(monkeypatch, films, "export", "--to", str(target))
    document = json.loads(capsys.readouterr().out)
    assert document["frames"] == pq.read_metadata(target).num_rows


def test_commands_say_what_is_not_there(
    films: Films,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, named in (
        (("ingest", str(tmp_path / "empty")), "no files are there"),
        (("duplicates", "no-such.mp4"), "no video 'no-such.mp4'"),
    ):
        assert _run(monkeypatch, films, *arguments) == 2
        assert named in json.loads(capsys.readouterr().out)["error"]["message"]
