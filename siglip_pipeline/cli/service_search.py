"""Have a running `up` or `serve` answer a search: its model is loaded already."""

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from pydantic import TypeAdapter

from siglip_pipeline.hits import SearchFilter, SearchResult
from siglip_pipeline.services.ports import ask
from siglip_pipeline.services.serving import find_service
from siglip_pipeline.settings import Settings
from siglip_pipeline.text.json_form import to_json

_SECONDS = 30.0
"""The first search of a service may wait for its model."""


def ask_service(
    settings: Settings, text: str, *, k: int, filter: SearchFilter
) -> tuple[SearchResult, str] | None:
    """Return the moments that a running service of this home finds, and its address.

    None if no service of this collection runs, or it does not answer this query: then this process
    searches, and has the better message where something is wrong.
    """
    url = find_service(settings)
    if url is None:
        return None
    try:
        query = urlencode(_parameters(settings, text, k, filter), doseq=True)
        answer = ask(f"{url}/api/search?{query}", api_key=settings.api_key, seconds=_SECONDS)
        result = TypeAdapter(SearchResult).validate_json(answer)
    except (OSError, ValueError):
        return None
    given = None if filter == SearchFilter() else filter
    return replace(result, query=replace(result.query, filter=given)), url


def _parameters(settings: Settings, text: str, k: int, filter: SearchFilter) -> dict[str, Any]:
    """Return the query's parameters; this process's settings count, not those of the service."""
    minimum = {"min_probability": settings.search_min_probability}
    return {"q": text, "k": k, **minimum, **to_json(filter)}
