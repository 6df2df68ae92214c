"""The documents of `--json`, as docs and scripts read them."""

import pytest

from siglip_pipeline.cli.commands import database_status, list_models, partition_database
from siglip_pipeline.cli.indexing import IngestDocument, MaterializeDocument
from siglip_pipeline.errors import IndexBusyError, ModelNotFoundError
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.status_document import FailedVideo
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.build import building
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline_tests.store import made


def test_models_are_listed_with_their_coverage(database: Database, database_url: str) -> None:
    models = ModelStore(database)
    models.register(made.spec())
    row = models.get("tiny")
    document = to_json(list_models(Settings.load(database_url=database_url)))
    assert document == {
        "models": [
            {
                "name": row.name,
                "revision": row.revision,
                "key": row.key,
                "dim": row.dim,
                "active": False,
                "generation": None,
                "embedded": 0,
                "missing": 0,
                "failed": 0,
                "vectors": 0,
            }
        ],
        "promotions": [],
    }


def test_the_database_says_what_it_runs_and_how_it_is_tuned(
    database: Database, database_url: str
) -> None:
    document = to_json(database_status(Settings.load(database_url=database_url)))
    about = ("postgres", "pgvector", "size_bytes", "settings")
    assert [*document] == ["where", "embedded", "folder", *about]
    assert (document["embedded"], document["folder"]) == (False, None)
    assert document["size_bytes"] > 0
    assert "shared_buffers" in document["settings"]


def test_frames_are_partitioned_by_a_command(database: Database, database_url: str) -> None:
    settings = Settings.load(database_url=database_url)
    model_id = made.collection(database)
    with pytest.raises(ModelNotFoundError, match="searches use no model yet; name one: `models"):
        partition_database(settings, None)
    with building(database, model_id), pytest.raises(IndexBusyError, match="wait for it to end"):
        partition_database(settings, "tiny")
    document = to_json(partition_database(settings, "tiny"))
    assert document.pop("seconds") > 0
    done = {"key": "tiny", "frames": 12 * 24, "partitions": 16}
    assert document == done | {"videos_copied": 12}
    again = to_json(partition_database(settings, "tiny"))
    assert again == done | {"videos_copied": 0, "seconds": 0.0}


def test_backfills_are_named_only_where_they_were_not_waited_for() -> None:
    failed = FailedVideo(video="a.mp4", stage="video_frames", reason="no packets")
    shown = [{"video": "a.mp4", "stage": "video_frames", "reason": "no packets"}]
    assert to_json(IngestDocument(ingested=("a.mp4",), skipped=(), failed=(failed,))) == {
        "ingested": ["a.mp4"],
        "skipped": [],
        "indexed": [],
        "failed": shown,
    }
    assert to_json(MaterializeDocument(videos=("a.mp4",), failed=(failed,))) == {
        "videos": ["a.mp4"],
        "indexed": [],
        "failed": shown,
        "skipped": [],
    }
    started = MaterializeDocument(videos=("a.mp4",), backfills=("http://127.0.0.1/b/1",))
    assert to_json(started)["backfills"] == ["http://127.0.0.1/b/1"]
