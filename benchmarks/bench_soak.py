"""Does it stay flat under load? One long backfill, searches meanwhile, and readers that dawdle.

Many short videos and one of several hours are indexed by one `siglip-pipeline materialize`, while
the HTTP service is searched at a steady rate and the index is rebuilt again and again. The memory
of the run and of its decoders is looked at every second, and given per tenth of the time. Then
clients that read a byte at a time hold on to the service while others search.

    python benchmarks/bench_soak.py [--quick] [--json] [--videos 2000] [--hours 6]
"""

import argparse
import itertools
import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import psutil
from fresh_home import fresh_home
from http_service import running
from store_report import Case, print_report

from siglip_pipeline.demo.films import demo_scenes, render_video
from siglip_pipeline.services.ports import free_port
from siglip_pipeline.settings import Settings, child_environment
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.videos import VideoStore

BASES = 20
LONG = "long.mp4"
SEARCHES_PER_SECOND = 2.0
REBUILD_EVERY_SECONDS = 20.0
SLOW_CLIENTS = 24
SLOW_SECONDS = 40.0
FLAT = 1.25
SAID_EVERY_SECONDS = 60.0
DECODER_MIB = 50.0
"""A child of the run that is larger is a decoder; Dagster's helpers are smaller."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="60 videos and a quarter of an hour")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--hours", type=float, default=6.0)
    options = parser.parse_args(arguments)
    videos, hours = (60, 0.25) if options.quick else (options.videos, options.hours)
    with fresh_home(page_port=free_port()) as settings:
        make_uploads(Path(settings.uploads), videos, hours)
        cases = soak(settings, videos, hours)
    print_report("soak", cases, as_json=options.json)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# -- uploads ---------------------------------------------------------------------------------------


def make_uploads(folder: Path, videos: int, hours: float) -> None:
    """Short films, no two of equal content, and one long one."""
    scenes = demo_scenes()
    bases = []
    for number in range(BASES):
        film = folder.parent / f"base-{number}.mp4"
        chosen = [scenes[(number + n) % len(scenes)] for n in range(2)]
        render_video(film, chosen, seconds_per_scene=1, size=(64, 48), fps=5)
        bases.append(film.read_bytes())
    for number in range(videos):
        # A box that players skip makes each file another content.
        box = number.to_bytes(8, "big")
        content = bases[number % BASES] + (8 + len(box)).to_bytes(4, "big") + b"free" + box
        (folder / f"{number:06}.mp4").write_bytes(content)
    clip = folder.parent / "clip.mp4"
    render_video(clip, scenes[:12], seconds_per_scene=5, size=(160, 120), fps=5)
    loop(clip, folder / LONG, times=round(hours * 60))
    log(f"{videos} short videos, and one of {hours:g} h")


def loop(clip: Path, target: Path, *, times: int) -> None:
    """The clip over and over, its packets copied."""
    with av.open(str(target), "w") as output:
        stream = None
        shift = 0
        for _ in range(times):
            with av.open(str(clip)) as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                assert video.time_base is not None
                end = 0
                for packet in source.demux(video):
                    if packet.pts is None or packet.dts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    output.mux(packet)
                shift += end
                assert shift * Fraction(video.time_base) > 0


# -- the soak --------------------------------------------------------------------------------------


@dataclass
class Memory:
    """Resident memory of a process and of its children, every second."""

    own_mib: list[float] = field(default_factory=list)
    children_mib: list[float] = field(default_factory=list)
    """Of the largest child."""

    def look(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            own = process.memory_info().rss / 2**20
            largest = 0.0
            for child in process.children(recursive=True):
                with suppress(psutil.Error):
                    if child.name() != "postgres":
                        largest = max(largest, child.memory_info().rss / 2**20)
            self.own_mib.append(own)
            self.children_mib.append(largest)


@dataclass
class Searches:
    """Latencies and failures of searches at a steady rate."""

    milliseconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def soak(settings: Settings, videos: int, hours: float) -> list[Case]:
    first = ["000000.mp4", "000001.mp4"]
    command = [sys.executable, "-m", "siglip_pipeline.cli.main", "materialize", "--json"]
    # The index is built by the thread below, over and over: two cannot build at once.
    per_video = ["--all-missing", "--assets", "video_frames", "--assets", "frame_embeddings"]
    subprocess.run(
        [*command, *first], env=child_environment(settings), check=True, stdout=subprocess.DEVNULL
    )
    ended = threading.Event()
    searches, rebuilt = Searches(), [0]
    with service(settings) as served:
        search(settings, "a red circle")  # loads the model
        threads = [
            threading.Thread(target=search_steadily, args=[settings, searches, ended]),
            threading.Thread(target=rebuild_steadily, args=[settings, rebuilt, ended]),
        ]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        memory = Memory()
        # Not a pipe: nobody would read it before the end, and the document is larger than one.
        document = settings.home / "materialized.json"
        with document.open("wb") as output:
            run = psutil.Popen(
                [*command, *per_video], env=child_environment(settings), stdout=output
            )
        try:
            said_at = began
            while run.poll() is None:
                memory.look(run)
                if time.monotonic() - said_at > SAID_EVERY_SECONDS:
                    said_at = time.monotonic()
                    log(so_far(memory, searches, rebuilt[0]))
                time.sleep(1)
        finally:
            if run.poll() is None:
                run.kill()
            ended.set()
            for thread in threads:
                thread.join()
        seconds = time.monotonic() - began
        said = document.read_text()
        log(f"the backfill ended with {run.returncode} after {seconds:.0f} s")
        cases = [*memory_cases(memory, videos, hours, seconds), *search_cases(searches, rebuilt[0])]
        log("clients that dawdle")
        cases += slow_clients(settings, served)
        done = sum(1 for state in states(settings) if state in ("embedded", "indexed"))
        cases.append(
            Case(
                name="videos_embedded",
                value=done,
                unit="videos",
                better="higher",
                goal=videos + 1,
                note=said[-200:] if run.returncode else None,
            )
        )
    return cases


def so_far(memory: Memory, searches: Searches, rebuilt: int) -> str:
    """A line for whoever watches, and for when it does not come to its end."""
    return (
        f"run {memory.own_mib[-1]:.0f} MiB, largest child {memory.children_mib[-1]:.0f} MiB; "
        f"{len(searches.milliseconds)} searches, {len(searches.errors)} failed, "
        f"p95 {np.percentile(searches.milliseconds or [0.0], 95):.0f} ms; {rebuilt} rebuilds"
    )


def states(settings: Settings) -> list[str]:
    with Database(settings.database_url or "") as database:
        return [str(state) for state in VideoStore(database).states().values()]


def memory_cases(memory: Memory, videos: int, hours: float, seconds: float) -> list[Case]:
    cases = [
        Case(
            name="backfill",
            value=seconds,
            unit="seconds",
            better="lower",
            note=f"{videos} short videos and one of {hours:g} h",
        )
    ]
    for name, values in (("run", memory.own_mib), ("largest_decoder", memory.children_mib)):
        tenths = [part for part in np.array_split(np.array(values), 10) if part.size]
        for number, tenth in enumerate(tenths, 1):
            cases.append(
                Case(
                    name=f"{name}_memory_tenth_{number}",
                    value=float(np.median(tenth)),
                    unit="mebibytes",
                    better="lower",
                    note=f"from {tenth.min():.0f} to {tenth.max():.0f}",
                )
            )
    for name, part in phases(memory).items():
        if len(part) >= 8:
            second, last = part[len(part) // 4 : len(part) // 2], part[-len(part) // 4 :]
            cases.append(
                Case(
                    name=f"run_memory_while_{name}",
                    value=max(last),
                    unit="mebibytes",
                    better="lower",
                    reference="most in the second quarter of it; this is the last",
                    reference_value=max(second),
                    goal=FLAT,
                )
            )
    return cases


def phases(memory: Memory) -> dict[str, list[float]]:
    """The run's memory while it decodes, and after: then the model is loaded."""
    decoding = [n for n, child in enumerate(memory.children_mib) if child > DECODER_MIB]
    boundary = decoding[-1] + 1 if decoding else 0
    return {"decoding": memory.own_mib[:boundary], "embedding": memory.own_mib[boundary:]}


def search_cases(searches: Searches, rebuilt: int) -> list[Case]:
    note = f"{len(searches.milliseconds)} searches, {rebuilt} index rebuilds meanwhile"
    for error in searches.errors[:5]:
        log(f"a search failed: {error}")
    return [
        Case(
            name=f"search_p{percent}_during_the_backfill",
            value=float(np.percentile(searches.milliseconds, percent)),
            unit="milliseconds",
            better="lower",
            note=note,
        )
        for percent in (50, 95)
    ] + [
        Case(
            name="search_errors_during_the_backfill",
            value=len(searches.errors),
            unit="errors",
            better="lower",
            goal=0,
            note=note,
        )
    ]


# -- those who search ------------------------------------------------------------------------------


def service(settings: Settings) -> AbstractContextManager[psutil.Process]:
    """`siglip-pipeline serve` in a process of its own."""
    command = [sys.executable, "-m", "siglip_pipeline.cli.main", "serve"]
    return running(command, address(settings, "healthz"), environment=child_environment(settings))


def address(settings: Settings, path: str) -> str:
    return f"http://127.0.0.1:{settings.page_port}/{path}"


def search(settings: Settings, text: str) -> float:
    """Milliseconds of one search over HTTP."""
    began = time.perf_counter()
    url = address(settings, f"api/search?q={quote(text)}&k=10")
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert json.load(answer)["hits"]
    return 1000 * (time.perf_counter() - began)


def search_steadily(settings: Settings, searches: Searches, ended: threading.Event) -> None:
    captions = itertools.cycle(scene.caption for scene in demo_scenes())
    due = time.monotonic()
    while not ended.is_set():
        try:
            searches.milliseconds.append(search(settings, next(captions)))
        except Exception as error:  # whatever it is, it is a search that failed
            searches.errors.append(f"{type(error).__name__}: {error}")
        due += 1 / SEARCHES_PER_SECOND
        ended.wait(max(0.0, due - time.monotonic()))


def rebuild_steadily(settings: Settings, rebuilt: list[int], ended: threading.Event) -> None:
    with Database(settings.database_url or "") as database:
        model = ModelStore(database).active()
        assert model is not None
        while not ended.wait(REBUILD_EVERY_SECONDS):
            # The run's own build may be under way: then this one is refused.
            with suppress(Exception):
                build_index(
                    database,
                    model.model_id,
                    options=IndexOptions.from_settings(settings),
                    force=True,
                )
                rebuilt[0] += 1


def slow_clients(settings: Settings, served: psutil.Process) -> list[Case]:
    """Clients that read the long video a byte at a time, and others who search."""
    with Database(settings.database_url or "") as database, database.connection() as connection:
        row = connection.execute("SELECT video_id FROM videos WHERE path = %s", [LONG]).fetchone()
    assert row is not None
    alone = [search(settings, "a blue square") for _ in range(20)]
    before_mib = served.memory_info().rss / 2**20
    ended = threading.Event()
    readers = [
        threading.Thread(target=dawdle, args=[settings, f"/api/videos/{row[0]}/stream", ended])
        for _ in range(SLOW_CLIENTS)
    ]
    for reader in readers:
        reader.start()
    time.sleep(2)
    beside, most_mib = [], before_mib
    until = time.monotonic() + SLOW_SECONDS
    while time.monotonic() < until:
        beside.append(search(settings, "a blue square"))
        most_mib = max(most_mib, served.memory_info().rss / 2**20)
        time.sleep(0.3)
    ended.set()
    for reader in readers:
        reader.join()
    note = f"{SLOW_CLIENTS} clients read a video a byte at a time for {SLOW_SECONDS:.0f} s"
    return [
        Case(
            name="search_p95_beside_slow_readers",
            value=float(np.percentile(beside, 95)),
            unit="milliseconds",
            better="lower",
            reference="alone",
            reference_value=float(np.percentile(alone, 95)),
            note=note,
        ),
        Case(
            name="service_memory_beside_slow_readers",
            value=most_mib,
            unit="mebibytes",
            better="lower",
            reference="before",
            reference_value=before_mib,
            goal=FLAT,
            note=note,
        ),
    ]


def dawdle(settings: Settings, path: str, ended: threading.Event) -> None:
    """Ask for everything, and take a byte now and then."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # no buffer reads ahead
        connection.connect(("127.0.0.1", settings.page_port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        while not ended.wait(0.02):
            if not connection.recv(1):
                raise ConnectionError("the service hung up on a slow reader")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()
