"""Signing in: a browser exchanges the key for a cookie, on the search page and before Dagster."""

from typing import Annotated, Final

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from siglip_pipeline.web.keys import SESSION_COOKIE, ApiKey
from siglip_pipeline.web.rendering import render

LOGIN_PATH: Final = "/login"
_SESSION_SECONDS: Final = 30 * 24 * 3600

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
"""Of an application whose ``state.api_key`` is an :class:`ApiKey`."""


@router.get(LOGIN_PATH)
def login_page(next: str = "/") -> Response:
    """Show the form that asks for the key."""
    return render("login.html", next=_local(next), wrong=False)


@router.post(LOGIN_PATH)
def login(
    request: Request,
    key: Annotated[str, Form(max_length=1000)] = "",
    next: Annotated[str, Form(max_length=4000)] = "/",
) -> Response:
    """Sign in: the browser gets a cookie that proves the key."""
    expected: ApiKey = request.app.state.api_key
    if not expected.matches(key):
        return render("login.html", status_code=401, next=_local(next), wrong=True)
    answer = RedirectResponse(_local(next), status_code=303)
    answer.set_cookie(
        SESSION_COOKIE,
        expected.session,
        max_age=_SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return answer


def _local(path: str) -> str:
    """Return a path of this service, or the first page: never another site."""
    plain = path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"
