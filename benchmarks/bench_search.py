"""What does the HTTP service add to a search? Latency and throughput of /api/search.

On made footage (``vectors.py``) of 10k, 100k and 1M frames. The service runs in a process of its
own and is asked over one kept connection. Two references, on one open connection each: the
statement that finds the nearest frames, prepared and in one open transaction, and the statements
that the service sends for the same answer. They take turns query by query. The texts' vectors are
made too, so that no model runs: text encoding is a case of its own.

    python benchmarks/bench_search.py [--quick] [--json] [--frames 10000 …] [--keep FOLDER]
"""

import argparse
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from http_service import running
from store_report import Case, print_report
from vectors import Footage

from siglip_pipeline.hits import SearchRequest
from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.search import QueryEmbedder
from siglip_pipeline.search.query_vectors import text_within
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store import generations
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.kinds import Generation, Scope, index_kind
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.execution import effort_of
from siglip_pipeline.store.search.near_frames import NearFrames
from siglip_pipeline.store.search.search_run import find_hits
from siglip_pipeline.store.vectors import VectorStore

K = 10
OVERHEAD_GOAL_MS = 3.0
CLIENTS = 4
WARM_UP = 20
REFERENCES = ("nearest frames", "the same answer")

Ask = Callable[[int], object]
Connect = Callable[[], AbstractContextManager[Ask]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10,000 frames, within 5 minutes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=None, help="timed one after the other")
    parser.add_argument("--kind", default="moments", help="of index")
    parser.add_argument("--keep", type=Path, help="folder for the made collections, used again")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = [10_000] if options.quick else options.frames
    queries = options.queries or (200 if options.quick else 1000)
    if options.serve:
        serve(Footage(options.frames[0], dim=options.dim), queries, *options.serve)
        return
    cases = text_encoding()
    for frames in sizes:
        cases += run(Footage(frames, dim=options.dim), queries, options.kind, options.keep)
    print_report("search", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(footage: Footage, queries: int, kind: str, keep: Path | None) -> list[Case]:
    log(f"{footage.frames:,} frames")
    with ExitStack() as stack:
        if keep is None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="siglip-bench-")))
        else:
            home = keep / f"{kind}-{footage.frames}-{footage.dim}"
            home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o755)
        settings = Settings.load(
            home=home,
            database_url=None,
            index_min_recall=0.0,
            # Recall has a benchmark of its own.
            index_recall_queries=20,
            index_kind=kind,
        )
        database = stack.enter_context(open_database(DatabaseOptions.from_settings(settings)))
        model_id = collection(footage, database, settings)
        return measure(footage, queries, database, model_id)


def collection(footage: Footage, database: Database, settings: Settings) -> int:
    """The made footage, loaded and indexed unless it is there already; the model's id."""
    active = ModelStore(database).active()
    if active is not None:
        log("kept from an earlier run")
        return active.model_id
    spec = ModelSpec(
        name="made", revision=None, key="made", dim=footage.dim, logit_scale=4.6, logit_bias=-16
    )
    model_id = ModelStore(database).register(spec, moment_threshold=settings.moment_threshold)
    for batch in footage:
        VectorStore(database).load(model_id, batch, source_sha256="0" * 64, sampling="fps:1")
    log("made and loaded")
    report = build_index(
        database,
        model_id,
        options=IndexOptions.from_settings(settings),
        embed_texts=lambda labels: footage.text_queries(len(labels)),
        progress=log,
    )
    assert report.published, report.reason
    return model_id


def measure(footage: Footage, queries: int, database: Database, model_id: int) -> list[Case]:
    with database.connection() as connection:
        target = generations.live(connection, model_id)
    assert target is not None
    effort = effort_of(index_kind(target.kind), target, footage.text_queries(1))
    note = f"{target.kind}, ef {effort.ef_search}, k {K}, dim {footage.dim}"
    vectors_ND = footage.text_queries(queries)
    with service(footage, queries, database.url.reveal()) as port:
        log("the service answers")
        ways = (
            lambda: over_http(port),
            lambda: nearest_frames(database, target, vectors_ND),
            lambda: same_answer(database, target, vectors_ND),
        )
        return [
            *latency(footage, note, ways, queries),
            *throughput(footage, note, ways, queries),
        ]


def latency(footage: Footage, note: str, connect: Sequence[Connect], n: int) -> list[Case]:
    """One client at a time, the service and the SQL taking turns query by query."""
    with ExitStack() as stack:
        asks = [stack.enter_context(way()) for way in connect]
        # Every query is asked before: or who asks first would read the pages for the others.
        timed(asks, range(n))
        own, *references = timed(asks, range(n))
    prefix = f"{footage.frames // 1000}k"
    cases = [
        Case(
            name=f"{prefix}_search_p{percent}",
            value=float(np.percentile(own, percent)),
            unit="milliseconds",
            reference=f"{reference}, SQL on an open connection",
            reference_value=float(np.percentile(raw, percent)),
            better="lower",
            note=note,
        )
        for percent in (50, 95)
        for reference, raw in zip(REFERENCES, references, strict=True)
    ]
    return cases + [
        Case(
            name=f"{prefix}_overhead_at_the_median_beside_{reference.replace(' ', '_')}",
            value=float(np.median(own) - np.median(raw)),
            unit="milliseconds",
            goal=OVERHEAD_GOAL_MS,
            better="lower",
            note=note,
        )
        for reference, raw in zip(REFERENCES, references, strict=True)
    ]


def throughput(footage: Footage, note: str, connect: Sequence[Connect], n: int) -> list[Case]:
    """Several clients at once, each with a connection of its own, each asking every query once."""
    own, *references = (together(way, n) for way in connect)
    return [
        Case(
            name=f"{footage.frames // 1000}k_requests_per_second_{CLIENTS}_clients",
            value=own,
            unit="requests_per_second",
            reference=f"{reference}, SQL on {CLIENTS} connections",
            reference_value=raw,
            better="higher",
            note=note,
        )
        for reference, raw in zip(REFERENCES, references, strict=True)
    ]


def timed(asks: Sequence[Ask], queries: Iterable[int]) -> list[list[float]]:
    """Milliseconds of each query, the ways of asking taking turns.

    Each goes first as often as another: who always did was 2% slower than itself.
    """
    spent: list[list[float]] = [[] for _ in asks]
    turns = list(zip(spent, asks, strict=True))
    for query in queries:
        for times, ask in turns:
            began = time.perf_counter()
            ask(query)
            times.append(1000 * (time.perf_counter() - began))
        turns = turns[1:] + turns[:1]
    return spent


def together(connect: Connect, queries: int) -> float:
    """Queries a second of several clients."""
    start = threading.Barrier(CLIENTS + 1)

    def client(number: int) -> None:
        with connect() as ask:
            timed([ask], range(min(WARM_UP, queries)))
            start.wait()
            timed([ask], ((query + number) % queries for query in range(queries)))

    threads = [threading.Thread(target=client, args=[number]) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return CLIENTS * queries / (time.perf_counter() - began)


@contextmanager
def over_http(port: int, headers: str = "") -> Iterator[Ask]:
    """A client that costs next to nothing: http.client spends longer on headers than the service.

    As load generators do, it reads as many bytes as the answer says that it has.
    """
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(query: int) -> object:
            path = f"/api/search?q={quote(f'query {query}')}&k={K}"
            host = f"Host: 127.0.0.1:{port}\r\n"
            connection.sendall(f"GET {path} HTTP/1.1\r\n{host}{headers}\r\n".encode())
            status = answers.readline()
            length = 0
            while (header := answers.readline()) != b"\r\n":
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = answers.read(length)
            assert status.startswith(b"HTTP/1.1 200 "), body
            return body

        yield ask


@contextmanager
def nearest_frames(database: Database, target: Generation, vectors_ND: FloatArray) -> Iterator[Ask]:
    """The statement prepared, in one transaction: as quick as Postgres can be asked."""
    with database.connection() as connection:
        kind = index_kind(target.kind)
        effort = effort_of(kind, target, vectors_ND)
        near = NearFrames(connection, kind, target, k=K, scope=Scope(), effort=effort)
        yield lambda query: near(vectors_ND[query])


@contextmanager
def same_answer(database: Database, target: Generation, vectors_ND: FloatArray) -> Iterator[Ask]:
    """What the service asks of Postgres, without the service around it."""
    model = ModelStore(database).active()
    assert model is not None
    within = text_within(model)
    with database.autocommit() as connection:

        def ask(query: int) -> object:
            request = SearchRequest(query_QD=vectors_ND[query : query + 1], k=K, within=within)
            hits = find_hits(connection, model, target, Scope(), request, must_be_active=True)
            assert hits is not None
            return hits

        yield ask


class MadeEmbedder(QueryEmbedder):
    """``query 17`` is the 17th made text query."""

    def __init__(self, settings: Settings, vectors_ND: FloatArray) -> None:
        super().__init__(ModelOptions.from_settings(settings))
        self._vectors_ND = vectors_ND

    def texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Looked up: no model runs."""
        return self._vectors_ND[[int(text.rpartition(" ")[2]) for text in texts]]


def serve(footage: Footage, queries: int, url: str, port: str) -> None:
    """The service as `siglip-pipeline serve` runs it, but for the made vectors and no rate."""
    from siglip_pipeline.web.app import create_app
    from siglip_pipeline.web.serve import http_server

    settings = Settings.load(database_url=url, http_requests_per_second=0)
    with Database(url) as database:
        embedder = MadeEmbedder(settings, footage.text_queries(queries))
        server = http_server(settings, create_app(settings, database, embedder=embedder))
        server.run(sockets=[socket.create_server(("127.0.0.1", int(port)), backlog=512)])


@contextmanager
def service(footage: Footage, queries: int, url: str) -> Iterator[int]:
    port = free_port()
    command = [
        *(sys.executable, str(Path(__file__).resolve())),
        *("--serve", url, str(port), "--queries", str(queries)),
        *("--frames", str(footage.frames), "--dim", str(footage.dim)),
    ]
    with running(command, f"http://127.0.0.1:{port}/healthz"):
        yield port


def text_encoding() -> list[Case]:
    """The demo model's text tower, one text a pass: what the figures above leave out."""
    from siglip_pipeline.demo.run import MODEL_FOLDER
    from siglip_pipeline.siglip.model import get_model
    from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings

    settings = Settings.load(model_name=str(MODEL_FOLDER))
    model = get_model(ModelOptions.from_settings(settings), tower="text")

    def embed(query: int) -> object:
        return extract_text_embeddings([f"a red circle {query}"], model=model)

    timed([embed], range(WARM_UP))
    (times,) = timed([embed], range(WARM_UP, 100))
    return [
        Case(
            name="text_encoding_p50",
            value=float(np.median(times)),
            unit="milliseconds",
            better="lower",
            note=f"the demo's tiny model on {model.device}, not part of the other figures",
        )
    ]


if __name__ == "__main__":
    main()
