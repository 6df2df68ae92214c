"""Damaged frame files are detected, made again, and never served."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from siglip_pipeline.errors import DamagedFramesError, FrameStoreError
from siglip_pipeline.stages.reconcile import InDagster, reconcile
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.conftest import Make, Reference
from siglip_pipeline_tests.faults.harness import FILMS, Pipeline

VIDEO = "a.mp4"

Damage = Callable[[bytes], bytes]

# What a power cut or a full disk leaves under a name: less, nothing, or blocks never written.
DAMAGE: dict[str, Damage] = {
    "empty": lambda whole: b"",
    "first bytes": lambda whole: whole[:3],
    "half": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-1],
    "zeros": lambda whole: bytes(len(whole)),
    "zeros before the footer": lambda whole: (
        whole[: len(whole) // 3] + bytes(4096) + whole[len(whole) // 3 + 4096 :]
    ),
    "garbage": lambda whole: random.Random(0).randbytes(len(whole)),
    "garbage between the marks": lambda whole: (
        b"PAR1" + random.Random(1).randbytes(len(whole) - 12) + whole[-8:]
    ),
}


@pytest.fixture(scope="module")
def whole(make_pipeline: Make, reference: Reference) -> Pipeline:
    """A pipeline that has run; its frame files are copied, not changed."""
    pipeline = make_pipeline()
    pipeline.finish()
    return pipeline


def frame_file(pipeline: Pipeline, video: str = VIDEO) -> Path:
    (file,) = Path(pipeline.settings.frame_store_url).glob(f"{video}*.parquet")
    return file


def everything(store: FrameStore) -> tuple[object, ...]:
    batches = list(store.read(VIDEO))
    frames = [int(index) for batch in batches for index in batch.frame_index_N]
    seconds = [float(second) for batch in batches for second in batch.time_seconds_N]
    jpegs = [jpeg for batch in batches for jpeg in batch.jpegs]
    served = [store.thumbnail(VIDEO, frame) for frame in frames]
    return store.metadata(VIDEO), frames, seconds, jpegs, served


@pytest.mark.faults
def test_wherever_a_file_is_damaged_it_gives_what_was_stored_or_an_error(
    whole: Pipeline, tmp_path: Path
) -> None:
    source = frame_file(whole)
    content = source.read_bytes()
    copy = tmp_path / source.name
    store = FrameStore(tmp_path)
    copy.write_bytes(content)
    right = everything(store)
    refused = 0
    cuts = [content[: len(content) * n // 64] for n in range(64)]
    holes = [
        content[:start] + bytes(64) + content[start + 64 :]
        for start in range(0, len(content), max(64, len(content) // 256))
    ]
    for damaged in cuts + holes:
        copy.write_bytes(damaged)
        try:
            found = everything(store)
        except FrameStoreError:
            refused += 1
        else:
            assert found == right
    assert refused > len(cuts) + len(holes) // 2


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_before_embedding_is_made_good(
    damage: Damage, make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline()
    assert pipeline.run("materialize", "--all-missing", "--assets", "video_frames", "--json") == 0
    file = frame_file(pipeline)
    file.write_bytes(damage(file.read_bytes()))
    pipeline.finish()
    assert pipeline.stored() == reference.stored


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_damage_that_embedding_finds_is_said_and_then_made_good(
    make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline()
    assert pipeline.run("materialize", "--all-missing", "--assets", "video_frames", "--json") == 0
    file = frame_file(pipeline)
    file.write_bytes(DAMAGE["zeros before the footer"](file.read_bytes()))
    vectors_only = ("materialize", "--all-missing", "--assets", "frame_embeddings", "--json")
    assert pipeline.run(*vectors_only) == 1, pipeline.said[-4000:]
    stored = pipeline.stored()
    assert "is damaged" in stored.failures.pop(VIDEO)
    assert not stored.failures
    assert {video for video, _ in stored.vectors} == FILMS.keys() - {VIDEO}
    assert pipeline.run("materialize", "--failed", "--json") == 0, pipeline.said[-4000:]
    assert pipeline.stored() == reference.stored


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_duplicate_does_not_take_over_damaged_frames(
    make_pipeline: Make, reference: Reference, films: Path, tmp_path: Path
) -> None:
    shutil.copyfile(films / VIDEO, tmp_path / VIDEO)
    pipeline = make_pipeline(uploads=tmp_path)
    assert pipeline.run("materialize", "--all-missing", "--assets", "video_frames", "--json") == 0
    file = frame_file(pipeline)
    file.write_bytes(DAMAGE["zeros before the footer"](file.read_bytes()))
    shutil.copyfile(films / VIDEO, tmp_path / "duplicate.mp4")
    assert pipeline.run("materialize", "duplicate.mp4", "--json") == 0, pipeline.said[-4000:]
    pipeline.finish()
    stored = pipeline.stored()
    assert stored.only(VIDEO) == reference.stored.only(VIDEO)
    right = [value for key, value in sorted(stored.vectors.items()) if key[0] == VIDEO]
    assert right == [value for key, value in sorted(stored.vectors.items()) if key[0] != VIDEO]


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_damage_to_what_is_searchable_is_found_by_the_daily_look(
    make_pipeline: Make, reference: Reference
) -> None:
    pipeline = make_pipeline()
    pipeline.finish()
    for video, damage in zip(sorted(FILMS), ("half", "zeros before the footer"), strict=False):
        file = frame_file(pipeline, video)
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
    damaged = sorted(FILMS)[:2]
    store = FrameStore(pipeline.settings.frame_store_url)
    for video in damaged:
        with pytest.raises(DamagedFramesError, match="is damaged"):
            store.verify(video)
    with open_database(DatabaseOptions.from_settings(pipeline.settings)) as database:
        found = reconcile(
            uploads=UploadStore(pipeline.settings.uploads, settle_seconds=0),
            frame_store=store,
            database=database,
            in_dagster=lambda: InDagster(partitions=frozenset(FILMS)),
            pause_seconds=0,
            verify_frames=True,
        )
    assert [difference.video for difference in found.differences] == damaged
    assert pipeline.run("materialize", "--stale", "--json") == 0, pipeline.said[-4000:]
    assert pipeline.stored() == reference.stored
