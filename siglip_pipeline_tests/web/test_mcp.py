"""The tools of the Model Context Protocol, asked by the SDK's own client: over stdio and HTTP.

The client is imported when a test runs: every process of a run collects this file, and one runs it.
"""

import base64
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from siglip_pipeline.settings import child_environment
from siglip_pipeline.web.search_parameters import FILTERS
from siglip_pipeline_tests.web.conftest import Collection, Served, serving

if TYPE_CHECKING:
    from mcp.client import Client
    from mcp_types import CallToolResult

pytestmark = pytest.mark.timeout(600)

KEY = "a-key-of-more-than-sixteen-characters"


@asynccontextmanager
async def _client(kind: str, served: Served, collection: Collection) -> AsyncIterator["Client"]:
    from mcp.client import Client
    from mcp.client.stdio import StdioServerParameters

    if kind == "http":
        async with Client(f"{served.url}/mcp") as client:
            yield client
        return
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "siglip_pipeline.cli.main", "mcp"],
        env=child_environment(collection.settings),
    )
    async with Client(command) as client:
        yield client


def _text(result: "CallToolResult") -> str:
    from mcp_types import TextContent

    return " ".join(item.text for item in result.content if isinstance(item, TextContent))


def _document(result: "CallToolResult") -> dict[str, Any]:
    assert not result.is_error, _text(result)
    document = result.structured_content
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("kind", ["stdio", "http"])
def test_an_assistant_finds_a_moment_and_looks_at_it(
    served: Served, collection: Collection, client: httpx.Client, kind: str
) -> None:
    from mcp_types import ImageContent

    async def ask() -> None:
        async with _client(kind, served, collection) as assistant:
            tools = {tool.name: tool for tool in (await assistant.list_tools()).tools}
            assert set(tools) == {"search_moments", "get_frames", "list_videos", "explain"}
            for tool in tools.values():
                assert tool.annotations is not None
                assert tool.annotations.read_only_hint
            found = _document(
                await assistant.call_tool("search_moments", {"query": "a red circle", "k": 3})
            )
            expected = client.get("/api/search?q=a+red+circle&k=3").json()
            assert found["hits"] == expected["hits"]
            hit = found["hits"][0]
            looked = await assistant.call_tool(
                "get_frames",
                {
                    "video_id": hit["video_id"],
                    "from_seconds": hit["start_seconds"],
                    "to_seconds": hit["end_seconds"],
                },
            )
            pictures = [item for item in looked.content if isinstance(item, ImageContent)]
            assert pictures
            assert base64.b64decode(pictures[0].data).startswith(b"\xff\xd8\xff")
            listed = _document(await assistant.call_tool("list_videos", {"limit": 2}))
            assert (len(listed["videos"]), listed["total"]) == (2, 4)
            why = await assistant.call_tool(
                "explain", {"query": "a red circle", "moment": "old.avi@3", "k": 1}
            )
            assert not why.is_error, _text(why)

    anyio.run(ask)


def test_tools_have_the_limits_of_the_api(served: Served, collection: Collection) -> None:
    async def ask() -> None:
        async with _client("http", served, collection) as assistant:
            for arguments, named in (
                ({"query": "x" * 501}, "SIGLIP_HTTP_MAX_QUERY_LENGTH"),
                ({"query": "x", "k": 101}, "at most 100"),
                ({"query": "x", "videos": ["no.mp4"]}, "no.mp4"),
                ({}, "nothing to look for"),
                ({"like": "one.mp4@-1"}, "VIDEO@SECONDS"),
            ):
                refused = await assistant.call_tool("search_moments", arguments)
                assert refused.is_error
                assert named in _text(refused)
            backwards = {"video_id": 1, "from_seconds": 5, "to_seconds": 3}
            refused = await assistant.call_tool("get_frames", backwards)
            assert "from_seconds=5 is not before to_seconds=3" in _text(refused)
            unknown = await assistant.call_tool("get_frames", {"video_id": 999_999})
            assert "999999" in _text(unknown)

    anyio.run(ask)


def test_a_boolean_is_no_number_of_a_tool(served: Served, collection: Collection) -> None:
    async def ask() -> int:
        asked = 0
        async with _client("http", served, collection) as assistant:
            for tool in (await assistant.list_tools()).tools:
                for name, field in tool.input_schema["properties"].items():
                    kinds = {kind.get("type") for kind in (field, *field.get("anyOf", ()))}
                    if kinds & {"integer", "number"}:
                        refused = await assistant.call_tool(tool.name, {name: True})
                        assert refused.is_error
                        assert f"{name}\n  Input should be a number, not" in _text(refused)
                        asked += 1
        return asked

    assert anyio.run(ask) >= 12, "the tools have these parameters"


def test_an_argument_that_a_tool_does_not_have_is_refused(
    served: Served, collection: Collection
) -> None:
    """It was left out: `video` instead of `videos` searched the whole collection."""

    async def ask() -> None:
        async with _client("http", served, collection) as assistant:
            for tool, arguments, said in (
                ("search_moments", {"query": "a star", "video": "x"}, "did you mean videos?"),
                ("search_moments", {"query": "a star", "limit": 2}, "There are from_seconds, k,"),
                ("list_videos", {"nam": "x"}, "did you mean name?"),
            ):
                refused = await assistant.call_tool(tool, arguments)
                assert refused.is_error
                assert "no such parameter" in _text(refused)
                assert said in _text(refused)

    anyio.run(ask)


def test_tools_have_all_filters(served: Served, collection: Collection) -> None:
    async def ask() -> None:
        async with _client("http", served, collection) as assistant:
            tools = {tool.name: tool for tool in (await assistant.list_tools()).tools}
            for name in ("search_moments", "explain"):
                assert set(FILTERS) <= set(tools[name].input_schema["properties"])
            late = {"query": "a red circle", "uploaded_since": "2100-01-01"}
            found = _document(await assistant.call_tool("search_moments", late))
            assert found["hits"] == []
            why = _document(await assistant.call_tool("explain", late | {"moment": "old.avi@3"}))
            assert [cause["cause"] for cause in why["causes"]] == ["filtered"]
            number = await assistant.call_tool("search_moments", late | {"uploaded_since": "2100"})
            assert "a date, such as 2026-11-30" in _text(number)

    anyio.run(ask)


def test_tools_over_http_need_the_key(collection: Collection) -> None:
    import httpx2
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client

    async def ask(url: str) -> int:
        bearer = {"Authorization": f"Bearer {KEY}"}
        async with (
            httpx2.AsyncClient(headers=bearer, timeout=60) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as assistant,
        ):
            return len((await assistant.list_tools()).tools)

    with serving(collection.settings, api_key=KEY) as running:
        headers = {"Accept": "application/json, text/event-stream"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        refused = running.client.post("/mcp", json=body, headers=headers)
        assert refused.status_code == 401
        assert anyio.run(ask, running.url) == 4
        elsewhere = {**headers, "Origin": "https://evil.example", "X-API-Key": KEY}
        assert running.client.post("/mcp", json=body, headers=elsewhere).status_code == 403
