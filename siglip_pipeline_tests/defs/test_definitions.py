"""The inventory of what Dagster shows: every change of it has to change these tests."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.assets import frame_embeddings, similarity_index
from siglip_pipeline.defs.code_references import with_code_references
from siglip_pipeline.errors import SettingsError
from siglip_pipeline.settings import Settings


def test_inventory() -> None:
    graph = defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
        *("uploads", "video_frames", "frame_embeddings", "similarity_index", "reconciliation"),
        *("video_similarity", "watch_hits"),
    }
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "uploads": set(),
        "video_frames": {"uploads"},
        "frame_embeddings": {"video_frames"},
        "similarity_index": {"frame_embeddings"},
        "video_similarity": {"frame_embeddings"},
        "watch_hits": {"frame_embeddings"},
        "reconciliation": {"similarity_index"},
    }
    assert {sensor.name for sensor in defs.sensors or []} == {
        *("new_uploads", "deleted_uploads", "automation", "run_failures", "lost_runs"),
        "watch_messages",
    }
    assert {job.name for job in defs.jobs or []} == {
        *("sample_frames", "embed_frames", "rebuild_index", "reconcile_collection"),
        *(
            "match_watches",
            "compare_videos",
            "remove_old_logs",
            "update_out_of_date",
            "retry_failed",
        ),
    }
    assert {schedule.name for schedule in defs.schedules or []} == {
        *("daily_index", "daily_reconciliation", "daily_cleaning"),
    }
    assert set(defs.resources or {}) == {"uploads", "frame_store", "database", "siglip"}


def test_loading_warns_of_nothing_and_every_job_has_a_name() -> None:
    code = (
        "from siglip_pipeline.definitions import defs; "
        "print(*(job.name for job in defs.get_repository_def().get_all_jobs()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {name for name in done.stdout.split() if name.startswith("__")} == {"__ASSET_JOB"}


def test_every_asset_explains_itself_and_is_grouped() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name == "video_search"
        assert node.kinds
        assert node.owners


def test_per_video_assets_are_partitioned_alike_and_run_apart() -> None:
    graph = defs.resolve_asset_graph()
    frames = graph.get(dg.AssetKey("video_frames"))
    embeddings = graph.get(dg.AssetKey("frame_embeddings"))
    watched = graph.get(dg.AssetKey("watch_hits"))
    assert frames.partitions_def == embeddings.partitions_def == watched.partitions_def
    # In one run of two assets, a failed video would prevent the second of all others.
    assert len({node.backfill_policy for node in (frames, embeddings, watched)}) == 3
    assert embeddings.pools == {"gpu"}


def test_assets_tell_dagster_where_their_code_and_columns_are() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys() - {dg.AssetKey("uploads")}:
        (reference,) = graph.get(key).metadata["dagster/code_references"].code_references
        assert Path(reference.file_path).is_file()
    frames = graph.get(dg.AssetKey("video_frames"))
    columns = frames.metadata["dagster/column_schema"].columns
    assert [column.name for column in columns][:2] == ["frame_index", "pts"]


@pytest.mark.parametrize("asset", [similarity_index, frame_embeddings])
def test_the_index_is_updated_every_night_once_there_is_one_or_can_be(
    asset: dg.AssetsDefinition,
) -> None:
    """A first run that failed, or a record of the index that was wiped, is not the end."""
    schedule = defs.get_repository_def().get_schedule_def("daily_index")
    policy = defs.resolve_asset_graph().get(similarity_index.key).freshness_policy
    assert policy == dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26))
    assert schedule.cron_schedule == "0 3 * * *"
    with dg.instance_for_test() as instance:
        context = dg.build_schedule_context(instance=instance)
        assert not schedule.evaluate_tick(context).run_requests
        partition = None if asset is similarity_index else "a.mp4"
        made = dg.AssetMaterialization(asset.key, partition=partition)
        instance.report_runless_asset_event(made)
        (request,) = schedule.evaluate_tick(context).run_requests or []
    assert request.run_key is None


@pytest.mark.parametrize(
    ("source_url", "folder"),
    [
        ("https://github.com/owner/name/tree/main", "https://github.com/owner/name/tree/main"),
        ("https://gitlab.com/group/name/-/tree/v1", "https://gitlab.com/group/name/-/tree/v1"),
    ],
)
def test_code_references_lead_to_the_repository_where_one_is_named(
    source_url: str, folder: str
) -> None:
    assert Settings.load(source_url=source_url).source_url == source_url
    (linked,) = with_code_references([similarity_index], source_url)
    (reference,) = linked.metadata_by_key[similarity_index.key][
        "dagster/code_references"
    ].code_references
    assert reference.url.startswith(f"{folder}/siglip_pipeline/defs/assets.py#L")


def test_a_source_url_that_is_no_repository_is_refused() -> None:
    with pytest.raises(SettingsError, match="tree/main"):
        Settings.load(source_url="https://user:secret@github.com/owner/name")
