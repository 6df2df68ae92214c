"""Parameters in addresses: their description, and the refusal of those that a route lacks."""

import difflib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.web.http_errors import HttpError

_SIGNATURE: Final = ("expires", "signature")
"""What `/api/sign` adds to an address, whichever it is."""


class StrictRoute(APIRoute):
    """A route that refuses parameters which it does not have, and names the nearest that it has."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request; 422 with the nearest parameter for an unknown one."""
        answer = super().get_route_handler()
        if not self.include_in_schema:  # a page
            return answer
        described = (self.openapi_extra or {}).get("parameters", ())
        known = {*_declared(self.dependant), *(parameter["name"] for parameter in described)}

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                _check(request.query_params, known)
            return await answer(request)

        return checked


def _check(given: Iterable[str], known: set[str]) -> None:
    if "signature" in given:
        known = known.union(_SIGNATURE)
    for name in given:
        if name not in known:
            raise HttpError(422, nearest(name, known))


def _declared(dependant: Dependant) -> Iterator[str]:
    """Yield the names of the parameters in the address that a route takes."""
    for field in dependant.query_params:
        yield field.alias
    for below in dependant.dependencies:
        yield from _declared(below)


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a route whose address is read with a model.

    FastAPI reads each parameter by itself, given or not, which takes 20 µs; a model reads all at
    once.
    """
    schema = model.model_json_schema()
    required = schema.get("required", ())
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "description": field.pop("description", ""),
                "schema": field,
            }
            for name, field in schema["properties"].items()
        ]
    }


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a message about an unknown name: what it may have meant, and what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    meant = f"; did you mean {close[0]}?" if close else ""
    there = f" There are {', '.join(known)}." if known else " There are none here."
    return f"{name[:80]}: no such parameter{meant}{there}"
