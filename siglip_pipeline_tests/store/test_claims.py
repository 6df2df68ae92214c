"""Claims on videos, between connections as between processes."""

import psycopg

from siglip_pipeline.store.claims import open_claims
from siglip_pipeline.store.database import Database


def test_a_claim_keeps_others_away_until_it_is_given_up(database: Database) -> None:
    with open_claims(database, 1) as mine, open_claims(database, 1) as theirs:
        assert mine.take("a.mp4")
        assert not theirs.take("a.mp4")
        assert theirs.take("b.mp4")
        theirs.release("a.mp4")  # not theirs to give up
        assert not theirs.take("a.mp4")
        mine.release("a.mp4")
        assert theirs.take("a.mp4")


def test_claims_end_with_their_block_and_are_of_one_model(database: Database) -> None:
    with open_claims(database, 2) as other_model:
        with open_claims(database, 1) as mine:
            assert mine.take("a.mp4")
            assert other_model.take("a.mp4")
        with open_claims(database, 1) as later:
            assert later.take("a.mp4")


def test_a_lost_session_claims_nothing_and_stops_nothing(
    database: Database, database_url: str
) -> None:
    with open_claims(database, 1) as mine:
        assert mine.take("a.mp4")
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE locktype = 'advisory'"
            )
        with open_claims(database, 1) as theirs:
            assert theirs.take("a.mp4")
        assert mine.take("b.mp4")
        mine.release("a.mp4")
