"""COPY's binary format: rows of any type and number are stored and read exactly, in blocks."""

from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql

from siglip_pipeline.store import tables
from siglip_pipeline.store.copy import copy_rows, encode, read_vectors, to_float32
from siglip_pipeline.store.database import Database
from siglip_pipeline_tests.store import made


@pytest.mark.parametrize("chunk", [1, 100, 1000])
@pytest.mark.parametrize("with_vector", [False, True])
def test_rows_of_every_type_are_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch, with_vector: bool, chunk: int
) -> None:
    monkeypatch.setattr("siglip_pipeline.store.copy.CHUNK_BYTES", chunk)
    small = np.array([-(2**31), -1, 0, 2**31 - 1, 7])
    large = np.array([-(2**63), -1, 0, 2**63 - 1, 2**40])
    real = np.array([-np.inf, -0.1, 0.0, 1e300, 5e-324])
    vectors_ND = np.array([[-65504, 0.25, 2.0**-24], [1, 2, 3]] * 3, np.float32)[:5]
    with database.connection() as connection:
        connection.execute(
            "CREATE TEMP TABLE stored (row serial, four int4, eight int8, real float8,"
            " same int4, vector halfvec(3))"
        )
        copy_rows(
            connection,
            sql.Identifier("stored"),
            {"four": ("int4", small), "eight": ("int8", large), "real": ("float8", real)}
            | {"same": ("int4", -9)},
            vector=("vector", vectors_ND) if with_vector else None,
        )
        rows = connection.execute(
            "SELECT four, eight, real, same, vector::float4[]::float8[] FROM stored ORDER BY row"
        ).fetchall()
    vectors = vectors_ND.tolist() if with_vector else [None] * 5
    numbers = [values.tolist() for values in (small, large, real)]
    assert rows == [*zip(*numbers, [-9] * 5, vectors, strict=True)]


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 128, 200])
def test_every_finite_half_is_read_exactly(rows: int) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    columns = -(-len(finite) // rows)
    halves_ND = np.resize(finite, (rows, columns))
    read_ND = to_float32(halves_ND.astype(">f2"))
    # Bit by bit, so that the two zeros differ.
    np.testing.assert_array_equal(
        read_ND.view(np.uint32), halves_ND.astype(np.float32).view(np.uint32)
    )


@pytest.mark.parametrize("rows", [0.01, 0.99, 1, 1.01, 8.5, 24, 10**6])
@pytest.mark.parametrize("dim", [1, 32])
def test_the_whole_table_is_read_in_blocks(
    database: Database, monkeypatch: pytest.MonkeyPatch, dim: int, rows: float
) -> None:
    """Blocks that end within a row, with a row, and with the table."""
    model_id = made.collection(database, videos=3, dim=dim)
    row_bytes = 2 + 2 * (4 + 4) + 4 + 4 + 2 * dim
    block_bytes = max(1, int(row_bytes * rows))
    monkeypatch.setattr("siglip_pipeline.store.copy.READ_BYTES", block_bytes)
    with database.connection() as connection:
        blocks = list(read_vectors(connection, tables.frames(model_id), dim))
        assert list(read_vectors(connection, tables.frames(model_id), dim, [])) == []
        stored = connection.execute(
            sql.SQL("SELECT video_id, frame_index FROM {}").format(tables.frames(model_id))
        ).fetchall()
    ids, indexes, vectors = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    assert [*zip(ids.tolist(), indexes.tolist(), strict=True)] == stored
    halves = [made.footage(i, dim=dim).astype(np.float16).astype(np.float32) for i in range(3)]
    np.testing.assert_array_equal(vectors, np.concatenate(halves))
    sizes = [len(indexes) * row_bytes for _, indexes, _ in blocks]
    assert all(abs(size - block_bytes) <= row_bytes for size in sizes[:-1])
    assert max(sizes) < block_bytes + row_bytes, "memory is what the caller allows"


def test_rows_that_have_arrived_are_read_without_a_wait_for_each(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait costs more than the row."""
    model_id = made.collection(database, videos=20)
    waits = 0
    wait = psycopg.Connection.wait

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal waits
        waits += 1
        return wait(self, *args, **kwargs)

    monkeypatch.setattr(psycopg.Connection, "wait", counted)
    with database.connection() as connection:
        read = sum(len(v) for v, _, _ in read_vectors(connection, tables.frames(model_id), 32))
    assert read == 20 * 24
    assert waits < read / 3


@given(rows=st.integers(0, 9), dim=st.integers(0, 5), chunk=st.integers(1, 200))
@hypothesis_settings(max_examples=40)
def test_blocks_of_any_size_encode_the_same_bytes(rows: int, dim: int, chunk: int) -> None:
    """With vectors, or without (a dimension of 0); a block is within the size, or is one row."""
    vectors_ND = np.arange(rows * dim, dtype=np.float32).reshape(rows, dim) if dim else None
    row_bytes = 2 + 8 + 12 + (8 + 2 * dim if dim else 0)
    columns: dict[str, tuple[str, Any]] = {
        "a": ("int4", 7),
        "b": ("float8", np.arange(rows) / 2),
    }
    whole = b"".join(encode(columns, vectors_ND))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siglip_pipeline.store.copy.CHUNK_BYTES", chunk)
        blocks = list(encode(columns, vectors_ND))
    assert b"".join(blocks) == whole
    assert len(whole) == 19 + rows * row_bytes + 2
    assert all(len(block) <= max(chunk, row_bytes) for block in blocks[1:-1])


@pytest.mark.parametrize("dim", [32, 768, 1152])
def test_blocks_are_as_large_as_psycopg_passes_on_undivided(dim: int) -> None:
    vectors_ND = np.ones((2000, dim), np.float32)
    largest = max(len(block) for block in encode({"video_id": ("int4", 7)}, vectors_ND))
    limit = 4 * 32 * 1024
    assert limit * 0.95 < largest <= limit, "psycopg's MAX_BUFFER_SIZE: it copies and divides more"
