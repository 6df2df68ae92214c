"""`siglip-pipeline search` asks the running service of its home, and does without one."""

import json
import subprocess
import sys
from typing import Any

import pytest

from siglip_pipeline.demo.films import demo_scenes
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.services.serving import find_service
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline_tests.web.conftest import Collection, wait_until
from siglip_pipeline_tests.web.test_serve import get_json, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROBE = """
import json, sys
from siglip_pipeline.cli.main import main
try:
    main()
finally:
    sys.stderr.write("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
HEAVY = {"torch", "transformers", "av", "dagster", "fastapi", "psycopg", "pyarrow", "PIL"}


def _search(settings: Settings, *arguments: str) -> tuple[dict[str, Any], str, set[str]]:
    """The document, what was said, and the modules that were imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "search", *arguments, "--json", "--verbose"],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, _, modules = done.stderr.rpartition("\n")
    return json.loads(done.stdout), said, set(json.loads(modules))


def _without_scores(document: dict[str, Any]) -> dict[str, Any]:
    hits = [hit | {"score": None, "probability": None} for hit in document["hits"]]
    return document | {"hits": hits}


def _scores(document: dict[str, Any]) -> list[float]:
    return [hit["score"] for hit in document["hits"]]


def _is_ready_once_the_model_is_there(url: str) -> None:
    assert get_json(f"{url}/healthz")[0] == 200
    seen = []

    def is_ready() -> bool:
        status, document = get_json(f"{url}/readyz")
        seen.append((status, document.get("error", {}).get("type")))
        return status == 200

    wait_until(is_ready, seconds=300)
    assert set(seen[:-1]) <= {(503, "NotReady")}


def test_a_running_service_answers_as_this_process_would(collection: Collection) -> None:
    queries = [
        [demo_scenes()[1].caption, "-k", "3"],
        [f'+"{demo_scenes()[1].caption}" -"{demo_scenes()[2].caption}"'],
        ["a star", "--video", "more/**", "--from", "1", "--min-probability", "0"],
    ]
    # The service embeds in torch: in bfloat16, where the processor has it, unless it is told.
    settings = collection.settings.model_copy(update={"dtype": "float32"})
    here = [_search(settings, *query) for query in queries]
    with serving(settings, "--port", str(free_port()), "--load-model") as (_, url):
        _is_ready_once_the_model_is_there(url)
        assert find_service(settings) == url
        there = [_search(settings, *query) for query in queries]
        # A database of another name is another collection.
        other = settings.model_copy(update={"database_url": None})
        assert find_service(other) is None
    for (mine, said_here, needed), (theirs, said_there, modules) in zip(here, there, strict=True):
        assert "answered by this process" in said_here
        assert needed.isdisjoint({"torch", "transformers", "av", "dagster", "fastapi"})
        assert f"answered by {url}" in said_there
        assert mine["hits"]
        assert _without_scores(mine) == _without_scores(theirs)
        assert _scores(mine) == pytest.approx(_scores(theirs), abs=1e-5)
        assert modules.isdisjoint(HEAVY)


def test_a_killed_or_refusing_service_is_done_without(collection: Collection) -> None:
    settings = collection.settings
    limits = settings.model_copy(update={"http_max_k": 2})
    with serving(limits, "--port", str(free_port())) as (process, url):
        document, said, _ = _search(settings, "a star", "-k", "3")
        assert find_service(settings) == url
        assert "answered by this process" in said
        assert len(document["hits"]) == 3
        process.kill()
        process.wait()
        assert find_service(settings) is None
    assert "answered by this process" in _search(settings, "a star")[1]
