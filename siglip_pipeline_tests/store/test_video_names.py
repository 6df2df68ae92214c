"""Names are met whatever their Unicode form, and kept as they are."""

from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import pytest

from siglip_pipeline.errors import QueryError, UploadNotFoundError
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.records import Upload
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.store.video_names import stored_name
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline_tests.store import made

NFC, NFD = "caf\u00e9/\u00fcber.mp4", "cafe\u0301/u\u0308ber.mp4"


def _found(database: Database, model_id: int, *videos: str) -> list[str]:
    with database.snapshot() as connection:
        scope = resolve_scope(connection, model_id, SearchFilter(videos=videos))
    rows = [VideoStore(database).by_id(video_id) for video_id in scope.video_ids or ()]
    return sorted(row.video for row in rows if row is not None)


def test_filters_and_commands_meet_a_name_in_either_form(database: Database) -> None:
    model_id = made.collection(database, videos=1)
    for stored, typed in ((NFC, NFD), (NFD, NFC)):
        made.record(database, stored)
        made.load(database, model_id, stored, made.footage(0))
        assert stored_name(database, typed) == stored
        patterns = (typed, normalize("NFC", "cafe\u0301/*"), "cafe\u0301/?ber.mp4", "\u00fc*")
        for pattern in (*patterns, normalize("NFD", "\u00fc*.mp4")):
            assert _found(database, model_id, pattern) == [stored], ascii((stored, pattern))
        VideoStore(database).delete(stored)
    assert stored_name(database, NFC) == NFC, "what nobody has stays as it is"
    with pytest.raises(QueryError, match="no video"):
        _found(database, model_id, NFC)


def test_the_very_name_goes_before_others_and_two_others_are_not_guessed_between(
    database: Database,
) -> None:
    model_id = made.collection(database, videos=1)
    for name in (NFC, NFD):
        made.record(database, name)
        made.load(database, model_id, name, made.footage(0))
    for name in (NFC, NFD):
        assert stored_name(database, name) == name
        assert _found(database, model_id, name) == [name]
    mixed = "cafe\u0301/\u00fcber.mp4"
    for look_up in (stored_name, lambda db, name: _found(db, model_id, name)):
        with pytest.raises(QueryError) as failed:
            look_up(database, mixed)
        assert ascii(NFC) in str(failed.value)
        assert ascii(NFD) in str(failed.value)


@pytest.mark.parametrize(("stored", "typed"), [("K.mp4", "\u212a.mp4"), ("\u212a.mp4", "K.mp4")])
def test_a_sign_whose_normal_form_is_ascii_is_met(
    database: Database, stored: str, typed: str
) -> None:
    """The sign of the kelvin is canonically the letter K."""
    model_id = made.collection(database, videos=1)
    made.record(database, stored)
    made.load(database, model_id, stored, made.footage(0))
    assert stored_name(database, typed) == stored
    assert _found(database, model_id, typed) == [stored]
    assert _found(database, model_id, typed[:1] + "*") == [stored]


def test_uploads_are_found_in_either_form(tmp_path: Path) -> None:
    store = UploadStore(tmp_path, settle_seconds=0)
    (tmp_path / "o\u0308.mp4").write_bytes(b"x")
    assert _paths(store.find(["\u00f6.mp4", "o\u0308.mp4"])) == ["o\u0308.mp4"] * 2
    (tmp_path / "\u00f6.mp4").write_bytes(b"x")
    assert _paths(store.find(["\u00f6.mp4", "o\u0308.mp4"])) == ["\u00f6.mp4", "o\u0308.mp4"]
    for name in ("o\u0308\u00f6.mp4", "\u00f6o\u0308.mp4"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(QueryError, match="several videos"):
        store.find(["\u00f6\u00f6.mp4"])
    with pytest.raises(UploadNotFoundError, match="no such file"):
        store.find(["a.mp4"])


def _paths(uploads: Sequence[Upload]) -> list[str]:
    return [upload.path for upload in uploads]
