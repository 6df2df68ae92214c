"""``auto``: moments where footage makes few of them, HNSW over frames elsewhere."""

import pytest

from siglip_pipeline.store.counts import StoredCounts, stored
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.choice import FRAMES_PER_MOMENT, MARGIN, choose_kind_for
from siglip_pipeline.store.index.recall import RecallReport
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.live_index import live_index
from siglip_pipeline_tests.store import made


@pytest.mark.parametrize(
    ("compactness", "live", "kind"),
    [
        (1.0, None, "hnsw"),
        (FRAMES_PER_MOMENT - 0.1, None, "hnsw"),
        (FRAMES_PER_MOMENT + 0.1, None, "moments"),
        (FRAMES_PER_MOMENT + 0.1, "exact", "moments"),
        # Within the margin the live one stays, beyond it goes.
        (FRAMES_PER_MOMENT / MARGIN + 0.1, "moments", "moments"),
        (FRAMES_PER_MOMENT / MARGIN - 0.1, "moments", "hnsw"),
        (FRAMES_PER_MOMENT * MARGIN - 0.1, "hnsw", "hnsw"),
        (FRAMES_PER_MOMENT * MARGIN + 0.1, "hnsw", "moments"),
    ],
)
def test_the_kind_follows_from_frames_a_moment(
    compactness: float, live: str | None, kind: str
) -> None:
    counts = StoredCounts(frames=round(1000 * compactness), moments=1000)
    chosen, why = choose_kind_for(counts, live)
    assert chosen == kind
    assert f"{compactness:.1f} frames a moment" in why


def test_an_empty_collection_is_given_the_default() -> None:
    assert choose_kind_for(StoredCounts(frames=0, moments=0), None)[0] == "moments"


def test_a_build_takes_the_kind_that_the_moments_ask_for(database: Database) -> None:
    model_id = made.collection(database)
    messages: list[str] = []
    compact = build_index(
        database,
        model_id,
        options=made.index_options(index_kind="auto"),
        progress=messages.append,
    )
    assert (compact.outcome, compact.kind) == ("published", "moments")
    assert any(message.startswith("auto: moments, for 8.0 frames") for message in messages)
    # Cut so finely that every frame is a moment of its own: looked at after the cut, not before.
    fine = made.index_options(index_kind="auto", moment_threshold=0.9999)
    varied = build_index(database, model_id, options=fine, kind=None)
    assert varied.kind == "hnsw"
    with database.connection() as connection:
        counts = stored(connection, model_id)
    assert counts.frames == counts.moments
    again = build_index(database, model_id, options=fine)
    assert again.outcome == "current", "what auto chose is not built again"


VARIED = made.index_options(index_kind="auto", moment_threshold=0.9999)
"""Every frame is a moment of its own, so ``hnsw`` is chosen."""


def refuse(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    monkeypatch.setattr(
        RecallReport, "fault", lambda report, _: "too little" if report.kind in kinds else None
    )


def test_moments_are_built_where_hnsw_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database, videos=4)
    refuse(monkeypatch, "hnsw")
    report = build_index(database, model_id, options=VARIED)
    assert (report.outcome, report.kind) == ("published", "moments")
    live = live_index(database, model_id)
    assert live is not None
    assert str(live.instead_of).startswith("hnsw: too little")
    again = build_index(database, model_id, options=VARIED)
    assert (again.outcome, again.generation) == ("current", 2), "hnsw is not tried at each run"
    refuse(monkeypatch)
    made.load(database, model_id, "v03.mp4", made.footage(333))
    report = build_index(database, model_id, options=VARIED)
    assert (report.outcome, report.kind) == ("published", "hnsw"), "a new build tries it again"


def test_every_frame_is_compared_where_hnsw_and_moments_are_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database, videos=4)
    refuse(monkeypatch, "hnsw", "moments")
    report = build_index(database, model_id, options=VARIED)
    assert (report.outcome, report.kind, report.active) == ("refused", "moments", True)
    live = live_index(database, model_id)
    assert live is not None
    assert (live.kind, live.recall_at_10) == ("exact", 1)
    messages: list[str] = []
    build_index(database, model_id, options=VARIED, progress=messages.append)
    assert not any("building a hnsw" in message for message in messages)


def test_a_kind_that_was_set_is_not_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.collection(database, videos=4)
    refuse(monkeypatch, "hnsw")
    report = build_index(database, model_id, options=made.index_options(index_kind="hnsw"))
    assert (report.outcome, report.kind) == ("refused", "hnsw")
