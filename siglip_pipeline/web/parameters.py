"""Parameters of requests: their description, and the refusal of those that no route would read."""

import difflib
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, get_args, get_origin

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.web.http_errors import HttpError

_SIGNATURE: Final = ("expires", "signature")
"""What `/api/sign` adds to an address, whichever it is."""


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not a boolean")
    return value


NUMBER: Final = BeforeValidator(_no_boolean)
"""For numbers in JSON: without it `true` would be read as 1."""


class StrictRoute(APIRoute):
    """A route that leaves out nothing of a request.

    It refuses parameters which it does not have, and names the nearest that it has; one that is
    given twice; names that a JSON object holds twice; and bodies that are compressed.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request; 422 and 415 for what it would not read."""
        answer = super().get_route_handler()
        if not self.include_in_schema:  # a page
            return answer
        described = (self.openapi_extra or {}).get("parameters", ())
        known = {
            **dict(_declared(self.dependant)),
            **{parameter["name"]: _is_list(parameter["schema"]) for parameter in described},
        }

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                _check(request.query_params.multi_items(), known)
            coding = request.headers.get("content-encoding", "identity")
            if coding.strip().lower() != "identity":
                raise HttpError(415, f"content encoding {coding[:80]!r}: send the body as it is")
            return await answer(_Request(request.scope, request.receive))

        return checked


class _Request(Request):
    async def json(self) -> object:
        """Return the body, read as JSON.

        Raises:
            HttpError: 422, an object holds a name twice.
        """
        return json.loads(await self.body(), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise given_twice(name)
        document[name] = value
    return document


def given_twice(name: str) -> HttpError:
    """Return the refusal of a request that gives a parameter twice: one would be ignored."""
    return HttpError(422, f"{name[:80]}: given more than once; give it once")


def _check(given: Iterable[tuple[str, str]], known: dict[str, bool]) -> None:
    """Refuse parameters that are unknown, or given twice and no lists."""
    names = [name for name, _ in given]
    if "signature" in names:
        known = known | dict.fromkeys(_SIGNATURE, False)
    seen: set[str] = set()
    for name in names:
        if name not in known:
            raise HttpError(422, nearest(name, known))
        if name in seen and not known[name]:
            raise given_twice(name)
        seen.add(name)


def _declared(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Yield the parameters in the address that a route takes, and whether each is a list."""
    for field in dependant.query_params:
        kinds = (field.field_info.annotation, *get_args(field.field_info.annotation))
        yield field.alias, any(get_origin(kind) is list for kind in kinds)
    for below in dependant.dependencies:
        yield from _declared(below)


def _is_list(schema: dict[str, Any]) -> bool:
    return any(kind.get("type") == "array" for kind in (schema, *schema.get("anyOf", ())))


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
    meant = f"; did you mean {close[0]}?" if close else "."
    there = f"There are {', '.join(known)}." if known else "There are none here."
    return f"{name[:80]}: no such parameter{meant} {there}"
