"""Encode rows for ``COPY … (FORMAT BINARY)`` with numpy, a whole array at a time.

The format: a header, then for each row a big-endian int16 with the number of fields and for each
field its length in bytes (int32) and its bytes; at the end -1 as int16. See "Binary Format" in
https://www.postgresql.org/docs/18/sql-copy.html. A ``halfvec`` is sent as int16 dimensions, int16
zero, then IEEE 754 binary16 values, all big-endian (``halfvec_send`` in pgvector).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.abc import Buffer

from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.database import Connection

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
# psycopg sends this much in one piece, and a socket buffers more: the server reads one block
# while the next is encoded.
CHUNK_BYTES = 128 * 1024
# A product of such a block with some hundred queries stays in the core's cache.
READ_BYTES = 4 * 1024**2
_DECODED_ROWS = 64
"""Rows whose vectors are decoded at a time: they stay in the core's cache."""

_CODES = {"int4": ">i4", "int8": ">i8", "float8": ">f8"}


def copy_rows(
    connection: Connection,
    table: sql.Identifier,
    columns: dict[str, tuple[str, NDArray[Any] | int]],
    *,
    vector: tuple[str, FloatArray] | None = None,
) -> None:
    """Append rows to a table.

    Args:
        connection: in a transaction.
        table: its name.
        columns: name to (``int4``, ``int8`` or ``float8``; values, or one value for all rows).
        vector: name of a ``halfvec`` column, which comes last, and its values [N, D].
    """
    names = [*columns] if vector is None else [*columns, vector[0]]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, names))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in encode(columns, None if vector is None else vector[1]):
            copy.write(block)


def encode(
    columns: dict[str, tuple[str, NDArray[Any] | int]], values_ND: FloatArray | None
) -> Iterator[bytes]:
    """Yield the rows in COPY's binary format, in blocks of up to ``CHUNK_BYTES``."""
    arrays = [values for _, values in columns.values() if not isinstance(values, int)]
    n = len(arrays[0] if values_ND is None else values_ND)
    kinds = [kind for kind, _ in columns.values()]
    row_type = _row_type(kinds, None if values_ND is None else values_ND.shape[1])
    rows_per_block = max(1, CHUNK_BYTES // row_type.itemsize)
    block = np.zeros(min(n, rows_per_block), row_type)
    block["fields"] = len(kinds) + (values_ND is not None)
    for i, kind in enumerate(kinds):
        block[f"length_{i}"] = np.dtype(_CODES[kind]).itemsize
    if values_ND is not None:
        block["vector_length"] = 4 + 2 * values_ND.shape[1]
        block["dim"] = values_ND.shape[1]
    yield HEADER
    for start in range(0, n, rows_per_block):
        rows = block[: min(rows_per_block, n - start)]
        for i, (_, values) in enumerate(columns.values()):
            of_rows = values if isinstance(values, int) else values[start : start + len(rows)]
            rows[f"value_{i}"] = of_rows
        if values_ND is not None:
            # Two conversions, to half precision and then to big-endian, are faster than one.
            rows["vector"] = values_ND[start : start + len(rows)].astype(np.float16)
        yield rows.tobytes()
    yield TRAILER


def _row_type(kinds: list[str], dim: int | None) -> np.dtype[Any]:
    fields: list[Any] = [("fields", ">i2")]
    for i, kind in enumerate(kinds):
        fields += [(f"length_{i}", ">i4"), (f"value_{i}", _CODES[kind])]
    if dim is not None:
        fields += [("vector_length", ">i4"), ("dim", ">i2"), ("unused", ">i2")]
        fields += [("vector", ">f2", dim)]
    return np.dtype(fields)


def read_vectors(
    connection: Connection,
    table: sql.Identifier,
    dim: int,
    video_ids: Sequence[int] | None = None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]]:
    """Yield a frames table in blocks: video ids, frame indexes, float32 vectors [rows, D].

    Only frames of ``video_ids``, if they are given.
    """
    row_type = _row_type(["int4", "int4"], dim)
    chosen = sql.SQL("true").format()
    if video_ids is not None:
        chosen = sql.SQL("video_id = ANY({}::integer[])").format(sql.Literal(list(video_ids)))
    statement = sql.SQL(
        "COPY (SELECT video_id, frame_index, embedding FROM {} WHERE {}) TO STDOUT (FORMAT BINARY)"
    ).format(table, chosen)
    pending = bytearray()
    skip = len(HEADER)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for data in _messages(connection, copy):
            pending += data
            if len(pending) >= READ_BYTES:
                whole = (len(pending) - skip) // row_type.itemsize
                if not whole:
                    continue
                # The arrays may view the old buffer, which is not written to again.
                full, pending = pending, pending[skip + whole * row_type.itemsize :]
                yield _decode(full, skip, whole, row_type)
                skip = 0
    whole = (len(pending) - skip - len(TRAILER)) // row_type.itemsize
    if whole > 0:
        yield _decode(pending, skip, whole, row_type)


def _messages(connection: Connection, copy: psycopg.Copy) -> Iterator[Buffer]:
    """Yield what the server sends; wait once for all rows that have arrived, not for each."""
    for data in copy:
        yield data
        # After the trailer, psycopg fetches the result. Without rows it comes with the header.
        while data not in (TRAILER, HEADER + TRAILER):
            size, data = connection.pgconn.get_copy_data(1)
            if size == 0:
                break
            yield data


def _decode(
    pending: bytearray, skip: int, whole: int, row_type: np.dtype[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    rows = np.frombuffer(pending, row_type, count=whole, offset=skip)
    vectors_ND = to_float32(rows["vector"])
    return rows["value_0"].astype(np.int64), rows["value_1"].astype(np.int64), vectors_ND


def to_float32(halves_ND: NDArray[np.float16]) -> FloatArray:
    """Return finite big-endian halves as float32, exactly, in half of numpy's own time.

    Sign and mantissa keep their place in the number, the exponent is 112 less: a product makes up
    for it, and turns subnormal numbers into normal ones.
    """
    bits_ND = np.empty(halves_ND.shape, np.int32)
    values_ND = bits_ND.view(np.float32)
    raw_ND = halves_ND.view(">i2")
    for start in range(0, len(bits_ND), _DECODED_ROWS):
        some = slice(start, start + _DECODED_ROWS)
        bits_ND[some] = raw_ND[some].astype(np.int16)
        bits_ND[some] <<= 13
        bits_ND[some] &= ~0x70000000
        values_ND[some] *= np.float32(2.0**112)
    return values_ND
