"""Refuse parameters that a route does not have, and name the nearest that it has."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request

from siglip_pipeline.web.http_errors import HttpError

_SIGNATURE: Final = ("expires", "signature")
"""What `/api/sign` adds to an address, whichever it is."""


async def known_parameters(request: Request) -> None:
    """Refuse a request with a parameter that its description does not list.

    Raises:
        HttpError: 422, with the nearest parameter.
    """
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    if not route.include_in_schema:  # a page
        return
    known = _known(route)
    if "signature" in request.query_params:
        known = known.union(_SIGNATURE)
    for name in request.query_params:
        if name not in known:
            raise HttpError(422, nearest(name, known))


def _known(route: APIRoute) -> frozenset[str]:
    """Return the names of the parameters of a route, which do not change.

    Not from the description of the whole API: making that takes half a second.
    """
    known = _KNOWN.get(route.endpoint)
    if known is None:
        known = _KNOWN[route.endpoint] = frozenset(_declared(route.dependant))
    return known


_KNOWN: dict[Callable[..., Any], frozenset[str]] = {}
"""By the functions that answer."""


def _declared(dependant: Dependant) -> Iterator[str]:
    """Yield the names of the parameters in the address that a route takes."""
    for field in dependant.query_params:
        yield field.alias
    for below in dependant.dependencies:
        yield from _declared(below)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a message about an unknown name: what it may have meant, and what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"; did you mean {close[0]}?" if close else ""
    there = f" There are {', '.join(known)}." if known else " There are none here."
    return f"{name[:80]}: no such parameter{meant}{there}"
