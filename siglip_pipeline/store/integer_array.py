"""Send thousands of integers as one parameter: psycopg converts a list element by element."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_INTEGER = psycopg.postgres.types["int4"]
# Dimensions, whether there are nulls, the type of elements, their number, the first index.
_HEAD = struct.Struct(">iiIii")


@dataclass(frozen=True, slots=True)
class IntegerArray:
    """A parameter of the type ``integer[]``."""

    values: Sequence[int]


class _IntegerArrayDumper(Dumper):
    """Writes what ``array_recv`` of Postgres reads: each element follows its length in bytes."""

    format = Format.BINARY
    oid = _INTEGER.array_oid

    def dump(self, obj: IntegerArray) -> bytes:
        import numpy as np  # not by commands that only count, such as `status`

        elements_N2 = np.full((len(obj.values), 2), 4, ">i4")
        elements_N2[:, 1] = obj.values
        return _HEAD.pack(1, 0, _INTEGER.oid, len(elements_N2), 1) + elements_N2.tobytes()


psycopg.adapters.register_dumper(IntegerArray, _IntegerArrayDumper)
