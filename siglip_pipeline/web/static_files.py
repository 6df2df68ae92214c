"""The page's style sheet and scripts, held in memory: no request leads to a file."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from siglip_pipeline.web.http_errors import HttpError

_TYPES: Final = {
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_CACHE: Final = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that ships with the package."""

    content: bytes
    media_type: str
    version: str
    """Changes with the content; part of the address, so that browsers cache it without limit."""


def _read() -> dict[str, Asset]:
    assets = {}
    ours = files("siglip_pipeline.web").joinpath("static").iterdir()
    # Swagger UI, as a package ships it: pages load nothing from other hosts.
    swagger = files("fastapi_offline").joinpath("static")
    for file in (
        *ours,
        swagger.joinpath("swagger-ui.css"),
        swagger.joinpath("swagger-ui-bundle.js"),
    ):
        suffix = file.name.rpartition(".")[2]
        if suffix in _TYPES:
            content = file.read_bytes()
            version = hashlib.sha256(content).hexdigest()[:12]
            assets[file.name] = Asset(content, _TYPES[suffix], version)
    return assets


ASSETS: Final = _read()


def asset_url(name: str) -> str:
    """Return the address of an asset."""
    return f"/static/{name}?v={ASSETS[name].version}"


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """Return an asset by name."""
    asset = ASSETS.get(name)
    if asset is None:
        raise HttpError(404, f"there is nothing at {request.url.path}")
    headers = {"ETag": f'"{asset.version}"', "Cache-Control": _CACHE}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
