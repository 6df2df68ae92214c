"""What does it cost to get sampled frames out of a video?

Each case measures CPU seconds of this package and of a reference in turn, several rounds, and
gives the medians and the median of the rounds' ratios:

decode      decoding alone, against a sequential PyAV loop over the same file
pipeline    decoding, resizing, JPEG and Parquet, against ``ffmpeg -vf fps=1,scale`` writing JPEGs
            of the same size (the ffmpeg program must be installed; it is run with one thread)
memory      peak of a decoding process on two hours of video against one minute of it
scenes      ``scenes`` against ``fps:1``, on the footage given by ``--videos``
shots       cuts found by ``scenes`` against PySceneDetect's ContentDetector (where installed)

Clips are made with the encoders that PyAV brings, of noisy moving patterns, or of the footage given
by ``--videos``. Decoders run with one thread: CPU time is what is compared.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from store_report import processor_name

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import VideoError
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import ExtractJob
from siglip_pipeline.video.decode import DecodeCounts, decode_frames
from siglip_pipeline.video.decoder_pass import Pass, PassCounts
from siglip_pipeline.video.extract import DecodeOptions, FrameReport, extract_frames, extract_many
from siglip_pipeline.video.extraction import extract
from siglip_pipeline.video.frame_selection import select_frames
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.plan import plan_decode, plan_everything
from siglip_pipeline.video.sampling import Sampling
from siglip_pipeline.video.scan import Scan, scan
from siglip_pipeline.video.scene_sampling import compared
from siglip_pipeline.video.shots import ContentScore, CutFinder
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline_tests.video.probing import probe

RATE = 25
LONGEST_SIDE = 768

Case = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter clips, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--videos", type=Path, help="folder of real videos to measure as well")
    parser.add_argument("--seconds", type=int, help="length of rendered clips (default 60; 16)")
    parser.add_argument("--clips", type=Path, help="folder to keep rendered clips in")
    parser.add_argument("--rounds", type=int, help="measurements of each case (default 5; 2)")
    parser.add_argument("--only", default="", help="run the cases whose name begins so")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    seconds = arguments.seconds or (16 if arguments.quick else 60)
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as temporary:
        folder = Path(temporary)
        clips = arguments.clips or folder
        clips.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, clips=clips, seconds=seconds, rounds=rounds, only=arguments.only)
        cases = []
        for item in bench.cases(arguments.videos, two_hours=not arguments.quick):
            # What else was running: CPU time stretches a little when cores are shared.
            item["load_average"] = round(os.getloadavg()[0], 1)
            log(f"    {item['value']} against {item['reference_value']}: {item['ratio']}")
            cases.append(item)
    document = {
        "benchmark": "decode",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "rounds": rounds,
        "clip_seconds": seconds,
        "cases": cases,
        "not_measured": bench.not_measured,
    }
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print_table(document)


class Bench:
    """Makes clips and measures them."""

    def __init__(self, folder: Path, *, clips: Path, seconds: int, rounds: int, only: str) -> None:
        self.folder = folder
        self.clips = clips
        self.seconds = seconds
        self.rounds = rounds
        self.only = only
        self.not_measured: list[str] = []

    def wants(self, name: str) -> bool:
        """Whether this case was asked for."""
        return name.startswith(self.only)

    def cases(self, videos: Path | None, *, two_hours: bool) -> Iterator[Case]:
        """All cases, as they are measured."""
        footage = footage_of(videos)
        for name, sampling, goal, clip in CLIPS:
            if self.wants(f"decode_{name}"):
                path = self.clip(footage=footage, **clip)
                yield self.decoding(f"decode_{name}", path, sampling, goal)
        for path in sorted(videos.iterdir()) if videos else []:
            name = f"decode_fps1_real_{path.stem}"
            with contextlib.suppress(Exception):
                if self.wants(name) and probe(path).duration_seconds > 3:
                    yield self.decoding(name, path, "fps:1", 1.02)
        yield from self.pipelines(footage)
        for path in sorted(videos.iterdir()) if videos else []:
            name = f"scenes_{path.stem}"
            with contextlib.suppress(VideoError):
                if self.wants(name) and probe(path).duration_seconds > 3:
                    yield self.scenes(name, path)
        yield from self.parallel(footage)
        if self.wants("memory"):
            yield self.memory(two_hours=two_hours)
        yield from self.shots(videos)

    def clip(self, *, footage: Path | None, codec: str, **options: str) -> Path:
        """A 720p clip in one coding, made once."""
        name = "_".join([codec, *options.values()]).replace("/", "-").replace(":", "-")
        path = self.clips / f"{name[:140]}_{self.seconds}s.mkv"
        if not path.exists():
            log(f"rendering {path.name}")
            unfinished = self.folder / path.name
            render(unfinished, pictures(footage, self.seconds * RATE), codec, options)
            shutil.move(unfinished, path)
        return path

    def decoding(self, name: str, path: Path, sampling: str, goal: float) -> Case:
        log(f"measuring {name}")
        counts = DecodeCounts()
        own, reference = alternate(
            lambda: cpu_of(lambda: planned(path, sampling, counts)),
            lambda: cpu_of(lambda: sequential(path)),
            self.rounds,
        )
        source = MediaSource(path.name, path=path)
        packets = scan(source).packets
        return case(
            name,
            path,
            own,
            reference,
            reference_name="pyav sequential",
            goal=goal,
            frames=len(packets),
            frames_decoded=counts.frames_decoded // (self.rounds + 1),
            full_passes=counts.full_passes // (self.rounds + 1),
        )

    def pipelines(self, footage: Path | None) -> Iterator[Case]:
        """Everything up to stored frames, against the ffmpeg program."""
        if shutil.which("ffmpeg") is None:
            self.not_measured.append("pipeline: the ffmpeg program is not installed")
            return
        for name, _, _, clip in CLIPS:
            full = f"pipeline_{name}"
            if not name.startswith("fps1_") or not self.wants(full):
                continue
            path = self.clip(footage=footage, **clip)
            log(f"measuring {full}")
            reports: list[FrameReport] = []
            cpu, reference = alternate(
                partial(self.stored_cpu, path, reports), partial(self.ffmpeg, path), self.rounds
            )
            yield case(
                full,
                path,
                cpu,
                reference,
                reference_name="ffmpeg -vf fps=1,scale",
                goal=1.0,
                wall_seconds=statistics.median(report.wall_seconds for report in reports),
            )

    def scenes(self, name: str, path: Path) -> Case:
        """What ``scenes`` costs against ``fps:1``, stored frames included."""
        log(f"measuring {name}")
        reports: list[FrameReport] = []
        own, reference = alternate(
            partial(self.stored_cpu, path, reports, sampling="scenes"),
            partial(self.stored_cpu, path, reports),
            self.rounds,
        )
        return case(name, path, own, reference, reference_name="fps:1", goal=1.5)

    def stored_cpu(
        self, path: Path, reports: list[FrameReport], *, sampling: str = "fps:1"
    ) -> float:
        """CPU seconds of what a decoding process does with one video, in this process."""
        job = ExtractJob(
            video=path.name,
            fed_bytes=None,
            draft_folder=self.folder,
            sampling=Sampling.parse(sampling),
            options=DecodeOptions(longest_side=LONGEST_SIDE),
        )
        with (self.folder / "draft.parquet").open("wb") as draft:
            report = extract(job, MediaSource(path.name, path=path), draft)
        assert report.frames == report.planned_frames > 0
        assert report.damaged_packets == 0
        reports.append(report)
        return report.decode_cpu_seconds

    def ffmpeg(self, path: Path) -> float:
        """CPU seconds of the ffmpeg program writing the same frames as JPEG files."""
        out = self.folder / "jpegs"
        out.mkdir(exist_ok=True)
        scale = f"scale={LONGEST_SIDE}:-2"
        command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", "-i", str(path)]
        command += ["-vf", f"fps=1,{scale}", "-threads", "1", "-q:v", "3", str(out / "%05d.jpg")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def parallel(self, footage: Path | None) -> Iterator[Case]:
        """Wall time of a batch with all cores against one worker."""
        cpus = available_cores()
        if not self.wants("parallel") or cpus < 2:
            return
        log("measuring parallel_batch")
        path = self.clip(footage=footage, **CLIPS[0][3])
        folder = self.folder / "batch"
        folder.mkdir()
        for number in range(2 * cpus):
            shutil.copyfile(path, folder / f"{number}{path.suffix}")
        uploads = UploadStore(folder, settle_seconds=0)
        frames = FrameStore(self.folder / "frames")
        options = DecodeOptions(threads=1)
        batch = list(uploads.list())

        def wall(workers: int) -> float:
            started = time.perf_counter()
            results = extract_many(
                batch, uploads, frames, sampling="fps:1", options=options, workers=workers
            )
            reports = [report for _, report in results if isinstance(report, FrameReport)]
            assert len(reports) == len(batch) == 2 * cpus
            assert all(report.frames == report.planned_frames > 0 for report in reports)
            return time.perf_counter() - started

        own, reference = alternate(lambda: wall(cpus), lambda: wall(1), min(self.rounds, 3))
        yield {
            "name": "parallel_batch",
            "value": statistics.median(own),
            "unit": f"wall seconds for {len(batch)} videos",
            "reference": "one worker",
            "reference_value": statistics.median(reference),
            "ratio": median_ratio(own, reference),
            "goal": 1.3 / cpus,
            "better": "lower",
            "workers": cpus,
        }

    def memory(self, *, two_hours: bool) -> Case:
        """Peak memory must not grow with duration."""
        minutes = 120 if two_hours else 15
        log(f"measuring memory on {minutes} minutes")
        options = {"g": "250", "preset": "veryfast"}
        short = self.folder / "one_minute.mp4"
        render(short, pictures(None, 60 * RATE, width=192, height=108), "libx264", options)
        long = repeat(short, self.folder / "long.mp4", minutes)
        peaks = []
        for path in (short, long):
            uploads = UploadStore(path.parent, settle_seconds=0)
            frames = FrameStore(self.folder / "frames")
            # A fresh process each time: a peak never falls.
            report = extract_frames(uploads.get(path.name), uploads, frames, sampling="fps:1")
            assert abs(report.frames - 60 * (1 if path == short else minutes)) <= 1
            peaks.append(report.peak_memory_bytes / 2**20)
        return {
            "name": f"memory_{minutes}_minutes",
            "value": round(peaks[1], 1),
            "unit": "MiB",
            "reference": "one minute",
            "reference_value": round(peaks[0], 1),
            "ratio": round(peaks[1] / peaks[0], 3),
            "goal": 1.2,
            "better": "lower",
        }

    def shots(self, videos: Path | None) -> Iterator[Case]:
        """Cuts against those of PySceneDetect, frame by frame."""
        if not self.wants("shots"):
            return
        if videos is None or importlib.util.find_spec("scenedetect") is None:
            self.not_measured.append(
                "shots: needs --videos and `pip install scenedetect opencv-python`"
            )
            return
        scenedetect: Any = importlib.import_module("scenedetect")
        found = Counter[str]()
        own_seconds = reference_seconds = 0.0
        for path in sorted(videos.iterdir()):
            try:
                if probe(path).duration_seconds < 3:
                    continue
            except Exception as error:
                log(f"shots: {path.name} left out: {error}")
                continue
            video = self.only_stream(path)
            started = time.process_time()
            cuts = own_cuts(video)
            between = time.process_time()
            scenes = scenedetect.detect(str(video), scenedetect.ContentDetector())
            own_seconds += between - started
            reference_seconds += time.process_time() - between
            theirs = {start.frame_num: start.seconds for start, _ in scenes[1:]}
            found["theirs"] += len(theirs)
            for name, ours in (("ours", cuts), ("all", cuts_of_all(video))):
                found[name] += len(ours)
                found[f"{name} right"] += within_a_second(ours, theirs)
                found[f"{name} met"] += within_a_second(theirs, ours)
        assert found["theirs"], "no cut anywhere: nothing was compared"
        yield {
            "name": "shots_cpu_against_pyscenedetect",
            "value": round(own_seconds, 2),
            "unit": "CPU seconds, decoding included",
            "reference": "PySceneDetect ContentDetector",
            "reference_value": round(reference_seconds, 2),
            "ratio": round(own_seconds / reference_seconds, 3),
            "goal": 1.0,
            "better": "lower",
        }
        f1, f1_of_all = (
            (found[f"{name} right"] + found[f"{name} met"]) / (found[name] + found["theirs"])
            for name in ("ours", "all")
        )
        yield {
            "name": "shots_f1_at_one_second",
            "value": round(f1, 3),
            "unit": "F1 of cuts against PySceneDetect",
            "reference": "the same measure over all frames",
            "reference_value": round(f1_of_all, 3),
            "ratio": round(f1 / f1_of_all, 3),
            "goal": 0.95,
            "better": "higher",
            "cuts": found["theirs"],
        }

    def only_stream(self, path: Path) -> Path:
        """The stream that we decode, alone in a file: PySceneDetect takes the first."""
        index = scan(MediaSource(path.name, path=path)).stream_index
        if index == 0:
            return path
        out = self.folder / f"only_{path.stem}.mkv"
        with av.open(str(path)) as source, av.open(str(out), "w") as target:
            stream = source.streams[index]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    target.mux(packet)
        return out


# name, sampling, goal, how the clip is coded
CLIPS: list[tuple[str, str, float, dict[str, str]]] = [
    ("fps1_h264_gop250", "fps:1", 0.85, {"codec": "libx264", "g": "250"}),
    (
        "fps1_h264_pyramid8",
        "fps:1",
        0.45,
        {"codec": "libx264", "g": "250", "x264-params": "bframes=8:b-adapt=0:b-pyramid=normal"},
    ),
    ("fps1_h264_no_b", "fps:1", 1.02, {"codec": "libx264", "g": "250", "bf": "0"}),
    ("fps1_h264_gop25", "fps:1", 1.02, {"codec": "libx264", "g": "25"}),
    (
        "fps1_hevc",
        "fps:1",
        1.02,
        {"codec": "libx265", "preset": "veryfast", "x265-params": "keyint=250:log-level=none"},
    ),
    (
        "fps1_vp9",
        "fps:1",
        1.02,
        {"codec": "libvpx-vp9", "g": "250", "deadline": "realtime", "cpu-used": "7", "b": "3M"},
    ),
    ("fps1_av1", "fps:1", 1.02, {"codec": "libsvtav1", "preset": "10", "g": "250"}),
    ("fps1_mpeg4", "fps:1", 1.02, {"codec": "mpeg4", "g": "250", "bf": "2", "b": "4M"}),
    ("fps1_mpeg2", "fps:1", 1.02, {"codec": "mpeg2video", "g": "15", "bf": "2", "b": "8M"}),
    ("keyframes_h264_gop250", "keyframes", 0.05, {"codec": "libx264", "g": "250"}),
    ("one_a_minute_h264_gop250", "fps:1/60", 0.30, {"codec": "libx264", "g": "250"}),
    ("one_in_15_s_h264_gop250", "fps:1/15", 0.30, {"codec": "libx264", "g": "250"}),
]


def planned(path: Path, sampling: str, counts: DecodeCounts | None = None) -> int:
    """Decode the sampled frames, from opening the file on."""
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    packets = scanned.packets
    targets = select_frames(
        Sampling.parse(sampling),
        packets.pts_N,
        time_base=scanned.time_base,
        end_pts=packets.end_pts,
        key_N=packets.key_N,
    )
    found = sum(
        1 for _ in decode_frames(source, scanned, plan_decode(packets, targets), counts=counts)
    )
    assert found == targets.size
    return found


def sequential(path: Path) -> int:
    """Decode everything, the plain way."""
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda s: s.width * s.height)
        stream.codec_context.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def own_cuts(path: Path) -> dict[int, float]:
    """Cuts of ``scenes``, which decodes what other frames refer to: position and seconds."""
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    decoding = Pass(source, scanned, PassCounts(), 1, lambda packets: None)
    found = [held.frame_index for held, begins_shot in compared(decoding, scanned) if begins_shot]
    return times_of(found, scanned)


def cuts_of_all(path: Path) -> dict[int, float]:
    """Cuts by the same measure over all frames: position and seconds."""
    source = MediaSource(path.name, path=path)
    scanned = scan(source)
    pts_N = scanned.packets.pts_N
    everything = plan_everything(scanned.packets, np.arange(pts_N.size))
    score, finder = ContentScore(), CutFinder(scanned.time_base)
    found = [
        decoded.frame_index
        for decoded in decode_frames(source, scanned, everything)
        if finder.begins_shot(score.of(decoded.frame), decoded.pts)
    ]
    return times_of(found, scanned)


def times_of(positions: list[int], scanned: Scan) -> dict[int, float]:
    pts_N = scanned.packets.pts_N
    return {n: float((int(pts_N[n]) - int(pts_N[0])) * scanned.time_base) for n in positions}


def within_a_second(found: dict[int, float], wanted: dict[int, float]) -> int:
    """How many of the cuts found have one that is wanted within a second."""
    return sum(any(abs(a - b) <= 1 for b in wanted.values()) for a in found.values())


def footage_of(videos: Path | None) -> Path | None:
    """The longest real video of at least 720 lines, to render clips from."""
    best: tuple[float, Path] | None = None
    for path in sorted(videos.iterdir()) if videos else []:
        with contextlib.suppress(Exception):
            info = probe(path)
            if info.height >= 720 and (best is None or info.duration_seconds > best[0]):
                best = (info.duration_seconds, path)
    return best[1] if best else None


def pictures(
    footage: Path | None, count: int, *, width: int = 1280, height: int = 720
) -> Iterator[VideoFrame]:
    """Frames to encode: real footage, over and over, or a noisy moving pattern."""
    if footage is not None:
        done = 0
        while done < count:
            with av.open(str(footage)) as container:
                for frame in container.decode(video=0):
                    if done < count:
                        yield frame.reformat(width=width, height=height, format="yuv420p")
                        done += 1
        return
    random = np.random.default_rng(0)
    # A few noise tiles are enough: what matters is that frames cost bits like a camera's.
    noise = random.normal(0, 4, (8, height * 3 // 2, width)).astype(np.float32)
    y, x = np.arange(height * 3 // 2, dtype=np.float32), np.arange(width, dtype=np.float32)
    for n in range(count):
        across, down = (x + 4 * n) / 37, math.sin(n / 50) * y / 53
        # The sine of their sum, by products, which is much faster.
        rows = 60 * np.stack([np.cos(down), np.sin(down)], 1)
        waves = rows @ np.stack([np.sin(across), np.cos(across)])
        waves += 128
        if n % 200 < 100:
            waves[n % 200 * 3 :][:120, (7 * n) % width :][:, :160] = 220
        waves += noise[n % 8]
        planes = np.clip(waves, 0, 255, out=waves).astype(np.uint8)
        planes[height:] = planes[height:] // 4 + 96
        yield VideoFrame.from_ndarray(planes, format="yuv420p")


def render(path: Path, frames: Iterator[VideoFrame], codec: str, options: dict[str, str]) -> None:
    """Encode frames at 25 a second."""
    with av.open(str(path), "w") as container:
        stream: Any = None
        for n, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=RATE, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.thread_count = 0
            frame.pts, frame.time_base, frame.pict_type = n, Fraction(1, RATE), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def repeat(path: Path, out: Path, times: int) -> Path:
    """The same video several times on end, without encoding it again."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        raw = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in packets]
        time_base = stream.time_base
        assert time_base is not None
        length = round(probe(path).duration_seconds / time_base)
        for k in range(times):
            for data, pts, dts, is_keyframe in raw:
                packet = av.Packet(data)
                assert pts is not None
                assert dts is not None
                packet.pts, packet.dts = pts + k * length, dts + k * length
                packet.time_base, packet.is_keyframe = time_base, is_keyframe
                packet.stream = copy
                target.mux(packet)
    return out


def cpu_of(work: Callable[[], object]) -> float:
    """CPU seconds that this process spends on some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def alternate(
    own: Callable[[], float], reference: Callable[[], float], rounds: int
) -> tuple[list[float], list[float]]:
    """Both figures, round by round; the first of each, which warms caches, is not counted."""
    pairs = [(own(), reference()) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def median_ratio(own: list[float], reference: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(own, reference, strict=True)), 3)


def case(
    name: str,
    path: Path,
    own: list[float],
    reference: list[float],
    *,
    reference_name: str,
    goal: float,
    wall_seconds: float | None = None,
    **counts: int,
) -> Case:
    """One result: CPU seconds per hour of video, and the ratio."""
    hours = probe(path).duration_seconds / 3600
    result: Case = {
        "name": name,
        "value": round(statistics.median(own) / hours, 1),
        "unit": "CPU seconds per hour of video",
        "reference": reference_name,
        "reference_value": round(statistics.median(reference) / hours, 1),
        "ratio": median_ratio(own, reference),
        "goal": goal,
        "better": "lower",
        **counts,
    }
    if wall_seconds is not None:
        result["wall_seconds_per_hour"] = round(wall_seconds / hours, 1)
    return result


def machine() -> dict[str, Any]:
    return {"cpu": processor_name(), "cores": os.cpu_count(), "system": platform.platform()}


def versions() -> dict[str, str]:
    names = ("av", "numpy", "pillow", "pyarrow")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    found["libavcodec"] = ".".join(str(n) for n in av.library_versions["libavcodec"])
    if shutil.which("ffmpeg"):
        line = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
        found["ffmpeg program"] = line.stdout.split()[2]
    if importlib.util.find_spec("scenedetect"):
        found["scenedetect"] = version("scenedetect")
    return found


def print_table(document: dict[str, Any]) -> None:
    print(f"{'case':<40} {'own':>9} {'reference':>9} {'ratio':>6} {'goal':>5}")
    for item in document["cases"]:
        better = 1 if item["better"] == "lower" else -1
        missed = better * item["ratio"] > better * item["goal"]
        verdict = "  misses its goal" if missed else ""
        print(
            f"{item['name']:<40} {item['value']:>9.1f} {item['reference_value']:>9.1f} "
            f"{item['ratio']:>6.3f} {item['goal']:>5.2f}{verdict}"
        )
    for line in document["not_measured"]:
        print(f"not measured: {line}")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
