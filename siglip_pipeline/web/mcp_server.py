"""The search as tools of the Model Context Protocol, over stdio and at `/mcp`. They only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import Field
from starlette.applications import Starlette

from siglip_pipeline import __version__
from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.search import SearchFilter
from siglip_pipeline.store.library import VideoFilter
from siglip_pipeline.text.date_time import DateTime
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.text.timecode import timecode
from siglip_pipeline.web.client_pictures import shrink_jpeg
from siglip_pipeline.web.http_errors import HttpError, public_error
from siglip_pipeline.web.parameters import NUMBER, nearest
from siglip_pipeline.web.query import MAX_ID, HitRange, explain_moment, moment_of, run_search
from siglip_pipeline.web.schemas import HitAnswer, VideoAnswer
from siglip_pipeline.web.services import Services

MAX_PICTURES: Final = 16
_PICTURE_WIDTH: Final = 640

_INSTRUCTIONS: Final = (
    "Find moments in a collection of videos by what they show. search_moments takes a caption-like "
    "description; get_frames shows stored frames of a video, so that you can look at a moment."
)
_READ_ONLY: Final = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)

_Like = Annotated[str | None, Field(description="VIDEO@SECONDS: moments that look like that one.")]
_Seconds = Annotated[float, NUMBER]
_Probability = Annotated[float, NUMBER]
_PerVideo = Annotated[int, NUMBER]
_Since = Annotated[DateTime | None, Field(description="Uploads modified then or later; UTC.")]
_Until = Annotated[DateTime | None, Field(description="Uploads modified before then.")]
_K = Annotated[int, Field(ge=1, description="How many moments."), NUMBER]
_Videos = Annotated[
    list[str] | None, Field(max_length=50, description="Only these: paths, or globs (`dir/**`).")
]


def create_mcp(services: Services) -> MCPServer[Any]:
    """Return a server of the tools, with the limits of the HTTP service."""
    server = _StrictServer(
        "siglip-pipeline", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    tools = _Tools(services)
    for tool in (tools.search_moments, tools.list_videos, tools.explain):
        server.add_tool(tool, annotations=_READ_ONLY)
    server.add_tool(tools.get_frames, annotations=_READ_ONLY, structured_output=False)
    return server


class _StrictServer(MCPServer[Any]):
    """A server that leaves out nothing of a call."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool.

        Raises:
            ToolError: an argument is not one of the tool's; names the nearest. Or see the base.
        """
        known = {tool.name: tool.input_schema["properties"] for tool in await self.list_tools()}
        for argument in arguments if name in known else ():
            if argument not in known[name]:
                raise ToolError(nearest(argument, known[name]))
        return await super().call_tool(name, arguments, context)


@dataclass(frozen=True, slots=True)
class _Tools:
    """The tools; clients see names, parameters and docstrings of these methods."""

    services: Services

    def search_moments(
        self,
        query: Annotated[
            str | None, Field(description='A caption, or a mix: +"snow" -"people".')
        ] = None,
        like: _Like = None,
        k: _K = 10,
        offset: Annotated[int, Field(ge=0), NUMBER] = 0,
        videos: _Videos = None,
        from_seconds: _Seconds | None = None,
        to_seconds: _Seconds | None = None,
        uploaded_since: _Since = None,
        uploaded_until: _Until = None,
        min_probability: _Probability | None = None,
        max_per_video: _PerVideo | None = None,
    ) -> dict[str, Any]:
        """Find the moments that show what a text describes, or look like another moment."""
        with _public():
            filter = _filter(
                videos,
                from_seconds=from_seconds,
                to_seconds=to_seconds,
                uploaded_since=uploaded_since,
                uploaded_until=uploaded_until,
                min_probability=min_probability,
                max_per_video=max_per_video,
            )
            moment = moment_of(self.services, like, None, None)
            result = run_search(self.services, HitRange(k, offset), filter, q=query, moment=moment)
            hits = [to_json(HitAnswer.of(hit)) for hit in result.hits]
            return {"query": to_json(result.query), "model": result.model, "hits": hits}

    def get_frames(
        self,
        video_id: Annotated[int, Field(ge=1, le=MAX_ID), NUMBER],
        from_seconds: Annotated[float, Field(ge=0), NUMBER] = 0.0,
        to_seconds: _Seconds | None = None,
        limit: Annotated[int, Field(ge=1, le=MAX_PICTURES), NUMBER] = 8,
    ) -> list[Any]:
        """Return stored frames of a part of a video as pictures, evenly spaced, each with its time.

        For a hit, ask for its start_seconds and end_seconds.
        """
        with _public():
            if to_seconds is not None and not from_seconds < to_seconds:
                raise HttpError(
                    422, f"from_seconds={from_seconds:g} is not before to_seconds={to_seconds:g}"
                )
            name = self.services.name(video_id)
            end = float("inf") if to_seconds is None else to_seconds
            found = self.services.timelines.frames(
                video_id, start_seconds=from_seconds, end_seconds=end, max_frames=limit
            )
            shown: list[Any] = [
                f"{name.video}: {len(found.frames)} of {counted(found.total, 'frame')}"
            ]
            for frame in found.frames:
                jpeg = self.services.frames.thumbnail(name.video, frame.frame_index)
                picture = Image(data=shrink_jpeg(jpeg, _PICTURE_WIDTH), format="jpeg")
                shown += [f"at {timecode(frame.time_seconds)}", picture]
            return shown

    def list_videos(
        self,
        name: Annotated[str | None, Field(description="A part of the path.")] = None,
        limit: Annotated[int, Field(ge=1, le=500), NUMBER] = 50,
        offset: Annotated[int, Field(ge=0, le=MAX_ID), NUMBER] = 0,
    ) -> dict[str, Any]:
        """List the videos of the collection by path, each with its id and its progress."""
        with _public():
            filter = VideoFilter(name=name)
            rows = self.services.library.page(filter, limit=limit, offset=offset)
            videos = [VideoAnswer.of(row).model_dump(mode="json") for row in rows]
            return {"videos": videos, "total": self.services.library.count(filter)}

    def explain(
        self,
        moment: Annotated[str, Field(description="VIDEO@SECONDS, which was expected.")],
        query: Annotated[str | None, Field(description="As for search_moments.")] = None,
        like: _Like = None,
        k: _K = 10,
        videos: _Videos = None,
        from_seconds: _Seconds | None = None,
        to_seconds: _Seconds | None = None,
        uploaded_since: _Since = None,
        uploaded_until: _Until = None,
        min_probability: _Probability | None = None,
        max_per_video: _PerVideo | None = None,
    ) -> dict[str, Any]:
        """Say why a search with these filters does not show a moment, and what would change it."""
        with _public():
            filter = _filter(
                videos,
                from_seconds=from_seconds,
                to_seconds=to_seconds,
                uploaded_since=uploaded_since,
                uploaded_until=uploaded_until,
                min_probability=min_probability,
                max_per_video=max_per_video,
            )
            asked = moment_of(self.services, like, None, None)
            hits = HitRange(k, 0)
            found = explain_moment(self.services, moment, hits, filter, q=query, moment=asked)
            return to_json(found)


def mcp_app(server: MCPServer[Any]) -> Starlette:
    """Return the routes of a server over HTTP; the guard has checked host, origin and key."""
    return server.streamable_http_app(
        stateless_http=True,
        json_response=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )


def _filter(videos: list[str] | None, **limits: Any) -> SearchFilter:
    return SearchFilter(videos=tuple(videos) if videos else None, **limits)


@contextmanager
def _public() -> Iterator[None]:
    """Answer errors as HTTP does: those of the service's own side are only logged."""
    try:
        yield
    except (HttpError, SiglipPipelineError) as error:
        raise ToolError(public_error(error, "an MCP tool").message) from error
