"""The sensor `new_uploads` reports each upload and starts its run once."""

import os
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs import sensors
from siglip_pipeline.defs.partitions import partition_key
from siglip_pipeline.defs.sensors import frame_runs, new_uploads, upload_changes
from siglip_pipeline.records import Upload
from siglip_pipeline.settings import Settings
from siglip_pipeline.stages.frames_options import FramesOptions
from siglip_pipeline.stages.freshness import changed_uploads, known_by_earlier_form
from siglip_pipeline.stages.run_names import FRAMES_PER_RUN, RANGE_END_TAG, RANGE_START_TAG
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.defs.conftest import tick


def _upload(path: str, size_bytes: int = 1) -> Upload:
    return Upload(path=path, size_bytes=size_bytes, modified_at=1.0)


def test_changes_tell_new_changed_and_deleted_apart() -> None:
    same, changed, new, unlisted = (_upload(name) for name in ("a", "b", "c", "d"))
    reported = {
        "a": same.fingerprint,
        "b": _upload("b", size_bytes=2).fingerprint,
        "d": unlisted.fingerprint,
        "gone": "x",
    }
    changes = upload_changes([unlisted, new, changed, same], reported, frozenset("ab"))
    # d was reported, but the partition was never made: it is new again.
    assert changes.new == (new, unlisted)
    assert changes.changed == (changed,)
    assert changes.deleted == ("gone",)


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 200))
def test_runs_cover_the_batch_exactly_and_stay_small(batch: set[int], existing: int) -> None:
    keys = [f"k{number:03d}" for number in range(existing)]
    uploads = {f"k{number:03d}": f"{number}.1" for number in sorted(batch)}
    partitions = [*dict.fromkeys([*keys, *uploads])]
    covered: list[str] = []
    for run in frame_runs(uploads, partitions):
        first = partitions.index(run.tags[RANGE_START_TAG])
        last = partitions.index(run.tags[RANGE_END_TAG])
        assert last - first < FRAMES_PER_RUN
        covered += partitions[first : last + 1]
    assert sorted(covered) == list(uploads)


def test_every_announcement_makes_another_run_key() -> None:
    (before,) = frame_runs({"a": "1.1"}, ["a"])
    (again,) = frame_runs({"a": "1.1"}, ["a"])
    (after,) = frame_runs({"a": "1.2"}, ["a"])
    assert before.run_key == again.run_key != after.run_key


def _reported(instance: dg.DagsterInstance) -> list[str | None]:
    """Partitions of the asset `uploads` that events were written of, oldest first."""
    records = instance.fetch_materializations(dg.AssetKey("uploads"), limit=100, ascending=True)
    return [record.partition_key for record in records.records]


def _tick(instance: dg.DagsterInstance) -> dg.SensorResult | None:
    """Evaluate the sensor; None if it skipped."""
    result = tick(new_uploads, instance)
    if not isinstance(result, dg.SensorResult):
        assert isinstance(result, dg.SkipReason)
        return None
    return result


def test_a_file_is_taken_up_once_and_again_when_it_changes(uploads: Path) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert _tick(instance) is None
        (uploads / "b.mp4").write_bytes(b"b")
        (uploads / "a\nb.mp4").write_bytes(b"a")
        (uploads / "notes.txt").write_text("no video")
        first = _tick(instance)
        assert first is not None
        keys = [partition_key("a\nb.mp4"), "b.mp4"]
        assert instance.get_dynamic_partitions("videos") == keys
        assert _reported(instance) == keys
        (run,) = first.run_requests or []
        assert (run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) == (keys[0], keys[1])
        assert _tick(instance) is None

        (uploads / "b.mp4").write_bytes(b"changed")
        second = _tick(instance)
        assert second is not None
        assert _reported(instance) == [*keys, "b.mp4"]
        assert _tick(instance) is None


@pytest.mark.parametrize("form", [0, 1], ids=["without ctime", "without inode"])
def test_an_upgrade_announces_nothing_and_notices_what_changes_after_it(
    form: int, uploads: Path, database: Database
) -> None:
    file = uploads / "a.jpg"
    file.write_bytes(b"1234")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    status = file.stat()
    whole = f"4-1700000000000000-{round(status.st_ctime * 1e6)}-{status.st_ino}"
    with dg.DagsterInstance.ephemeral() as instance:
        assert _tick(instance) is not None
        with database.connection() as connection:
            connection.execute(
                "UPDATE videos SET listed_fingerprint = %(it)s, source_fingerprint = %(it)s",
                {"it": "-".join(whole.split("-")[: 2 + form])},
            )
        assert _tick(instance) is None
        with database.connection() as connection:
            found = connection.execute(
                "SELECT listed_fingerprint, source_fingerprint FROM videos"
            ).fetchone()
        assert found == (whole, whole)
        file.write_bytes(b"4321")
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert _tick(instance) is not None


@pytest.mark.parametrize("form", [0, 1], ids=["without ctime", "without inode"])
def test_an_upgrade_of_many_uploads_announces_none(
    form: int, uploads: Path, database: Database
) -> None:
    for number in range(3000):
        (uploads / f"{number:04d}.mp4").touch()
    store = UploadStore(uploads, settle_seconds=0)
    listing = [*store.scan()]
    rows = [(u.path, u.size_bytes, u.fingerprints[form]) for u in listing]
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO videos (path, size_bytes, listed_fingerprint, source_fingerprint,
                                source_sha256, sampling)
            SELECT path, size, fingerprint, fingerprint, 'hash', 'recipe'
            FROM (SELECT %s AS path, %s::bigint AS size, %s AS fingerprint) upload
            """,
            rows,
        )
    videos = VideoStore(database)
    assert changed_uploads(videos.fingerprints(), listing) == set()
    assert len(known_by_earlier_form(videos.fingerprints(), listing)) == 3000
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("videos", [partition_key(u.path) for u in listing])
        assert _tick(instance) is None
        known = videos.fingerprints()
        assert known == {u.path: u.fingerprint for u in listing}
        assert known_by_earlier_form(known, listing) == []
        # Two files change places: each has another inode under its name.
        (uploads / "0007.mp4").replace(uploads / "0007.tmp")
        (uploads / "0008.mp4").replace(uploads / "0007.mp4")
        (uploads / "0007.tmp").replace(uploads / "0008.mp4")
        changed = {"0007.mp4", "0008.mp4"}
        assert changed_uploads(known, store.scan()) == changed
        assert _tick(instance) is not None
        assert {*_reported(instance)} == changed


def test_a_run_that_the_daemon_never_made_is_asked_for_again(
    uploads: Path, database: Database
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (uploads / name).write_bytes(b"x")

    def minutes_pass() -> None:
        with database.connection() as connection:
            connection.execute("UPDATE videos SET announced_at = announced_at - interval '2 min'")

    with dg.DagsterInstance.ephemeral() as instance:
        # The database failed after the partitions were written and before the runs.
        first = _tick(instance)
        assert first is not None
        assert _tick(instance) is None
        minutes_pass()
        second = _tick(instance)
        assert second is not None
        (lost,), (run,) = first.run_requests or [], second.run_requests or []
        assert run.tags == lost.tags
        assert run.run_key != lost.run_key
        instance.create_run_for_job(
            defs.resolve_implicit_global_asset_job_def(),
            tags={**run.tags, "dagster/run_key": str(run.run_key)},
        )
        for _ in range(2):
            minutes_pass()
            assert _tick(instance) is None


def test_uploads_that_a_restored_database_has_forgotten_are_run_again(
    uploads: Path, database: Database
) -> None:
    """The restored tables give them the numbers that they had, and Dagster runs no key twice."""
    (uploads / "a.mp4").write_bytes(b"x")
    with dg.DagsterInstance.ephemeral() as instance:
        first = _tick(instance)
        with database.connection() as connection:
            connection.execute("TRUNCATE videos RESTART IDENTITY CASCADE")
        second = _tick(instance)
    assert first is not None
    assert second is not None
    (before,), (after,) = first.run_requests or [], second.run_requests or []
    assert after.tags == before.tags
    assert after.run_key != before.run_key


def test_a_tick_takes_so_many_and_leaves_the_rest_to_the_next(
    uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "UPLOADS_PER_TICK", 2)
    for name in "edcba":
        (uploads / f"{name}.mp4").write_bytes(b"x")
    with dg.DagsterInstance.ephemeral() as instance:
        for expected in ("ab", "abcd", "abcde"):
            assert _tick(instance) is not None
            assert _reported(instance) == [f"{name}.mp4" for name in expected]
        assert _tick(instance) is None


def test_a_tick_that_takes_long_takes_fewer(uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "TICK_BUDGET_SECONDS", 0.0)
    names = [f"{number:03d}.mp4" for number in range(FRAMES_PER_RUN + 3)]
    for name in names:
        (uploads / name).write_bytes(b"x")
    with dg.DagsterInstance.ephemeral() as instance:
        # Every tick makes progress, however short its time.
        assert _tick(instance) is not None
        assert _reported(instance) == names[:FRAMES_PER_RUN]
        assert _tick(instance) is not None
        assert _reported(instance) == names
        assert _tick(instance) is None


def test_what_lost_its_partition_is_registered_again(uploads: Path) -> None:
    (uploads / "a.mp4").write_bytes(b"x")
    with dg.DagsterInstance.ephemeral() as instance:
        assert _tick(instance) is not None
        assert _tick(instance) is None
        instance.delete_dynamic_partition("videos", "a.mp4")
        (again,) = (_tick(instance) or dg.SensorResult()).run_requests or []
        assert again.tags[RANGE_START_TAG] == "a.mp4"
        assert instance.get_dynamic_partitions("videos") == ["a.mp4"]
        assert _tick(instance) is None


def test_the_job_has_exactly_what_is_out_of_date_taken_up(
    uploads: Path, database: Database
) -> None:
    for name in "abc":
        (uploads / f"{name}.mp4").write_bytes(b"x")
    recipe = FramesOptions.from_settings(Settings.load()).recipe
    with dg.DagsterInstance.ephemeral() as instance:
        assert _tick(instance) is not None
        with database.connection() as connection:
            connection.execute(
                "UPDATE videos SET source_sha256 = 'x', source_fingerprint = listed_fingerprint,"
                " sampling = CASE path WHEN 'b.mp4' THEN 'fps:9' ELSE %s END",
                [recipe],
            )
        job = defs.resolve_job_def("update_out_of_date")
        assert job.execute_in_process(instance=instance).success
        (run,) = (_tick(instance) or dg.SensorResult()).run_requests or []
        assert (run.tags[RANGE_START_TAG], run.tags[RANGE_END_TAG]) == ("b.mp4", "b.mp4")
        assert _tick(instance) is None


def test_uploads_that_cannot_be_listed_fail_the_tick(
    uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGLIP_UPLOADS", str(uploads / "absent"))
    with (
        dg.DagsterInstance.ephemeral() as instance,
        pytest.raises(Exception, match="SIGLIP_UPLOADS"),
    ):
        _tick(instance)
