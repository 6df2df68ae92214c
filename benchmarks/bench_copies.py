"""Which transformed copies are found, on films that nothing was tuned on?

Rendered films of other seeds than the demo's, FFmpeg's generated pictures (a Mandelbrot zoom, the
game of life, drifting gradients, a cellular automaton), and, of the real clips that are given, the
second half, each copied by other strengths than those that the thresholds were chosen with.

    python benchmarks/bench_copies.py [--json] [--seed N] [--clips FILE …]
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
from store_report import Case, print_report

from siglip_pipeline.demo.films import render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.demo.scenes import random_scene
from siglip_pipeline.settings import Settings
from siglip_pipeline.similarity.compare import compare_videos
from siglip_pipeline.similarity.similar_videos import VideoSimilarityStore
from siglip_pipeline.store.database import DatabaseOptions, open_database
from siglip_pipeline_tests.search.conftest import index_folder
from siglip_pipeline_tests.video.copies import Transform, transformed_copy

FILMS = 8
SECONDS = 24
GENERATED = {
    "mandelbrot": "size=320x240:rate=25:end_pts=600:maxiter=300",
    "life": "size=320x240:rate=25:mold=10:ratio=0.1:death_color=#204080:life_color=#00c060:seed=5",
    "gradients": "size=320x240:rate=25:speed=0.05:nb_colors=5:seed=11",
    "cellauto": "size=320x240:rate=25:rule=110:random_seed=3",
}
GOALS = {"re-encode": 0.9, "scale": 0.9, "cut": 0.9}
TRANSFORMS = (
    Transform("re-encode", crf=33),
    Transform("scale", (("scale", "trunc(iw*0.2)*2:trunc(ih*0.2)*2"),), crf=30),
    Transform("cut", part=(0.15, 0.7), crf=28),
    Transform("speed", speed=Fraction(5, 4)),
    Transform("mirror", (("hflip", ""),)),
    Transform("crop", (("crop", "trunc(iw*0.4)*2:trunc(ih*0.4)*2"),)),
    Transform("crop_slightly", (("crop", "trunc(iw*0.46)*2:trunc(ih*0.46)*2"),)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=20261125, help="of the rendered films")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="real footage")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="siglip-copies-") as folder:
        Path(folder).chmod(0o755)
        uploads = Path(folder) / "uploads"
        uploads.mkdir()
        names = list(sources(uploads, options.clips, options.seed))
        for name in names:
            for transform in TRANSFORMS:
                target = uploads / f"{name}+{transform.name}.mp4"
                transformed_copy(uploads / f"{name}.mp4", target, transform)
        settings = Settings.load(
            home=folder,
            uploads=str(uploads),
            model_name=str(MODEL_FOLDER),
            database_url=None,
            index_kind="exact",
            index_min_recall=0.0,
            index_recall_queries=2,
        )
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            model_id = index_folder(database, settings)
            compare_videos(database, model_id)
            found = {
                frozenset((segment.video_a[:-4], segment.video_b[:-4]))
                for segment in VideoSimilarityStore(database).segments(duplicates_only=True)
            }
    print_report("copies", cases(names, found), as_json=options.json)


def sources(folder: Path, clips: Sequence[Path], seed: int) -> Iterator[str]:
    """Writes the originals; their names."""
    rng = np.random.default_rng(seed)
    for number in range(FILMS):
        name = f"film{number}"
        scenes = [random_scene(rng) for _ in range(SECONDS // 3)]
        render_video(folder / f"{name}.mp4", scenes, seconds_per_scene=3, size=(320, 240))
        yield name
    for name, settings in GENERATED.items():
        generate(folder / f"{name}.mp4", name, settings)
        yield name
    for clip in clips:
        half = replace(TRANSFORMS[0], name="half", part=(0.5, 1.0), crf=18)
        transformed_copy(clip, folder / f"{clip.stem}.mp4", half)
        yield clip.stem


def generate(path: Path, name: str, settings: str) -> None:
    """A film of one of FFmpeg's generators."""
    graph = av.filter.Graph()
    source = graph.add(name, settings)
    plain = graph.add("format", "yuv420p")
    sink = graph.add("buffersink")
    source.link_to(plain)
    plain.link_to(sink)
    graph.configure()
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=25, options={"crf": "20", "preset": "fast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for tick in range(25 * SECONDS):
            picture = sink.pull()
            assert isinstance(picture, av.VideoFrame)
            picture.pts, picture.time_base = tick, Fraction(1, 25)
            writer.mux(stream.encode(picture))
        writer.mux(stream.encode(None))


def cases(names: Sequence[str], found: set[frozenset[str]]) -> list[Case]:
    """Recall of each transform, and the share of what was found that is true."""
    true = {pair for pair in found if len({name.partition("+")[0] for name in pair}) == 1}
    figures = [
        Case(
            name=f"recall_{transform.name}",
            value=sum(frozenset((name, f"{name}+{transform.name}")) in found for name in names)
            / len(names),
            unit="share",
            goal=GOALS.get(transform.name),
            better="higher",
            note=f"of {len(names)}; not "
            + (
                ", ".join(
                    name
                    for name in names
                    if frozenset((name, f"{name}+{transform.name}")) not in found
                )
                or "one missed"
            ),
        )
        for transform in TRANSFORMS
    ]
    wrong = sorted(" = ".join(sorted(pair)) for pair in found - true)
    precision = Case(
        name="precision",
        value=len(true) / max(len(found), 1),
        unit="share",
        goal=1.0,
        better="higher",
        note=f"{len(found)} pairs among {len(names) * (1 + len(TRANSFORMS))} files"
        + (f"; wrong: {', '.join(wrong)}" if wrong else ""),
    )
    return [*figures, precision]


if __name__ == "__main__":
    main()
