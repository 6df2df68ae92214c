"""Which videos pass a filter, and how many frames and moments an index search expects of them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.search.scope import allows_video, resolve_scope
from siglip_pipeline_tests.store import made

FRAMES = {"a/one.mp4": 8, "a/two.mp4": 16, "b/one.mp4": 24, "[x].mp4": 24}
"""Scenes of 8 frames are moments; uploaded a second apart."""


@pytest.fixture(scope="module")
def model_id(module_database: Database) -> int:
    model_id = ModelStore(module_database).register(made.spec())
    for number, (video, frames) in enumerate(FRAMES.items()):
        made.record(module_database, video, modified_at=1e9 + number)
        made.load(module_database, model_id, video, made.footage(number, frames))
    made.record(module_database, "decoded.mp4", modified_at=1e9)
    return model_id


def at(second: int) -> datetime:
    return datetime.fromtimestamp(1e9 + second, UTC)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"videos": ("a/one.mp4",)}, ["a/one.mp4"]),
        ({"videos": ("a/*", "b/one.mp4")}, ["a/one.mp4", "a/two.mp4", "b/one.mp4"]),
        ({"videos": ("one.mp4*",)}, ["a/one.mp4", "b/one.mp4"]),
        ({"videos": ("[x].mp4",)}, ["[x].mp4"]),  # a name that is also a glob
        ({"videos": ("decoded.mp4",)}, []),
        ({"videos": ()}, []),
        ({"uploaded_since": at(2)}, ["b/one.mp4", "[x].mp4"]),
        ({"uploaded_until": at(2)}, ["a/one.mp4", "a/two.mp4"]),
        ({"uploaded_since": at(1), "uploaded_until": at(3)}, ["a/two.mp4", "b/one.mp4"]),
        ({"videos": ("a/*",), "uploaded_since": at(1)}, ["a/two.mp4"]),
        ({"videos": ("a/one.mp4",), "uploaded_since": at(1)}, []),
    ],
)
def test_videos_that_pass_are_counted(
    module_database: Database, model_id: int, filters: dict[str, Any], found: list[str]
) -> None:
    wanted = SearchFilter(**filters, from_seconds=1.5, to_seconds=2)
    with module_database.snapshot() as connection:
        scope = resolve_scope(connection, model_id, wanted)
        paths = connection.execute(
            "SELECT path FROM videos WHERE video_id = ANY(%s)", [scope.video_ids]
        ).fetchall()
    assert sorted(path for (path,) in paths) == sorted(found)
    assert scope.video_ids is not None
    assert len(scope.video_ids) == len(found)
    assert scope.frames == sum(FRAMES[video] for video in found)
    assert scope.moments == sum(FRAMES[video] // made.SCENE for video in found)
    assert scope.time_range == (1.5, 2)
    for video in FRAMES:
        assert allows_video(module_database, model_id, wanted, video) == (video in found)


def test_a_filter_that_is_not_about_videos_names_none(
    module_database: Database, model_id: int
) -> None:
    wanted = SearchFilter(from_seconds=3)
    with module_database.snapshot() as connection:
        scope = resolve_scope(connection, model_id, wanted)
    assert scope.video_ids is None
    assert scope.time_range == wanted.time_range
    assert allows_video(module_database, model_id, wanted, "a/one.mp4")


def test_a_pattern_that_postgres_refuses_is_named(
    module_database: Database, model_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_pipeline.store.search.scope.glob_regex", lambda glob: "(")
    wanted = SearchFilter(videos=("a/one.mp4", "x" * 70 + "*"))
    said = r"(?s)^a pattern among \['x{60}'\] cannot be used \(.*paren.*\); make it simpler$"
    with module_database.snapshot() as connection, pytest.raises(QueryError, match=said):
        resolve_scope(connection, model_id, wanted)


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        (("b.mp4", "a/one.mp4", "a.mp4"), r"^no video 'a\.mp4' \(2 of 3 unknown\); give its path"),
        (("c/*", "d/*"), r"^no video matches 'c/\*'; \* stays within a folder"),
        (("a/*", "a.mp4"), r"^no video 'a\.mp4' \(1 of 2 unknown\)"),
    ],
)
def test_what_is_not_there_is_named(
    module_database: Database, model_id: int, videos: tuple[str, ...], said: str
) -> None:
    wanted = SearchFilter(videos=videos)
    with module_database.snapshot() as connection, pytest.raises(QueryError, match=said):
        resolve_scope(connection, model_id, wanted)
    with pytest.raises(QueryError, match=said):
        allows_video(module_database, model_id, wanted, "a/one.mp4")
