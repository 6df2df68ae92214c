"""The API against its own description: made-up requests, valid and not, are answered as it says.

A few cases for each operation; ``--fuzz 500`` for more, ``--fuzz-seed`` for others. Schemathesis is
imported when a test runs: every process of a run collects this file, and one or two run it.
"""

import re
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from siglip_pipeline_tests.web.conftest import Collection, Served

if TYPE_CHECKING:
    import schemathesis

pytestmark = pytest.mark.timeout(7200)

FEW = 6
UNGUESSED = (
    "thumbnail|pictures|clip|playable.mp4|similar|labels|explain|watches|GET /api/search$|POST"
)


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_requests_are_answered_as_the_description_says(
    served: Served,
    collection: Collection,
    pytestconfig: pytest.Config,
    name: str,
) -> None:
    import schemathesis
    from schemathesis.core.result import Ok

    mode = schemathesis.GenerationMode(name)
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operations.append(found.ok())
    assert len(operations) >= 10
    # Made-up ids are of no video: with those alone, most of the service would never be asked.
    ids = [*collection.ids().values(), None]
    statuses: dict[str, set[int]] = {}
    for operation in operations:
        if mode is schemathesis.GenerationMode.NEGATIVE and not takes_anything(operation):
            continue
        statuses[operation.label] = answered = set[int]()
        check = given(case=operation.as_strategy(mode))(
            _check(ids if mode is schemathesis.GenerationMode.POSITIVE else [None], answered)
        )
        many = settings(
            max_examples=pytestconfig.getoption("--fuzz") or FEW,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        try:
            seed(pytestconfig.getoption("--fuzz-seed"))(many(check))()
        except BaseExceptionGroup as group:
            told = "\n".join(map(str, group.exceptions))
            raise AssertionError(f"{operation.label}: {told}") from group
    if mode is schemathesis.GenerationMode.POSITIVE:
        for label, answered in statuses.items():
            # Nobody guesses the number of a stored frame, a moment, the bytes of a picture, or
            # parameters of a search that go together.
            assert 200 in answered or re.search(UNGUESSED, label), (
                label,
                answered,
            )


def takes_anything(operation: "schemathesis.APIOperation[Any, Any, Any, Any]") -> bool:
    """Whether there is a parameter that could be wrong."""
    return bool(list(operation.iter_parameters()) or list(operation.body))


def _check(ids: list[int | None], answered: set[int]) -> "Callable[[schemathesis.Case[Any]], None]":
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    turn = cycle(ids)
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    ]

    def check(case: "schemathesis.Case[Any]") -> None:
        video_id = next(turn)
        if video_id is not None and "video_id" in case.path_parameters:
            case.path_parameters["video_id"] = video_id
        if video_id is not None and case.operation.label == "GET /api/search":
            for name in ("like", "picture", "seconds", "video_id"):
                case.query.pop(name, None)
        answer = case.call_and_validate(checks=held)
        answered.add(answer.status_code)

    return check
