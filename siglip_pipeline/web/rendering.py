"""Render the templates of the pages; all values are escaped."""

from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.responses import HTMLResponse

from siglip_pipeline import __version__
from siglip_pipeline.text.in_words import ago_in_words, counted, size_in_words
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.uploads.names import shown
from siglip_pipeline.web.static_files import asset_url

_templates = Environment(
    loader=PackageLoader("siglip_pipeline.web"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["timecode"] = timecode
_templates.filters["ago"] = ago_in_words
_templates.filters["size"] = size_in_words
_templates.filters["counted"] = counted
# Of a model in a folder, people need not see where that is.
_templates.filters["model"] = lambda name: "/".join(Path(name).parts[-2:])
_templates.filters["shown"] = shown
_templates.filters["below"] = lambda folder: f"{escape(folder)}/**"
_templates.filters["percent"] = lambda share: f"{share:.1%}"
_templates.filters["query"] = lambda values: urlencode(
    {name: value for name, value in values.items() if value is not None}
)
_templates.globals.update(asset_url=asset_url, version=__version__)


def render(name: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """Render a template as a response."""
    return HTMLResponse(_templates.get_template(name).render(values), status_code=status_code)
