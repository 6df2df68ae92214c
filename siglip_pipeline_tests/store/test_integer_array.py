"""An array of integers as a parameter, beside what psycopg makes of a list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.integer_array import IntegerArray

INTEGERS = st.integers(-(2**31), 2**31 - 1)


@given(values=st.lists(INTEGERS, max_size=40))
def test_an_array_arrives_as_it_is(module_database: Database, values: list[int]) -> None:
    with module_database.connection() as connection:
        [row] = connection.execute(
            "SELECT %s, pg_typeof(%s)::text, %s = %s::integer[]",
            [IntegerArray(values)] * 3 + [values],
        )
    assert row == (values, "integer[]", True)


def test_what_is_no_integer_of_four_bytes_is_refused(module_database: Database) -> None:
    with module_database.connection() as connection, pytest.raises(OverflowError):
        connection.execute("SELECT %s", [IntegerArray([2**31])])
