"""The engine on real models: order, isolation of failures, bounded memory, memory that runs out."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from siglip_pipeline.errors import EmbeddingError, FrameStoreError, VideoError
from siglip_pipeline.records import EmbeddingBatch, FrameBatch
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.engine import EmbeddingEngine, Progress
from siglip_pipeline.siglip.jpeg_decoders import Decoding, ThreadDecoder
from siglip_pipeline.siglip.model import SiglipModel, get_model, load_model
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline.siglip.runner import BatchSize, cpu_batch_limit
from siglip_pipeline_tests.siglip.checkpoints import Kind
from siglip_pipeline_tests.siglip.conftest import (
    Make,
    Video,
    jpeg,
    picture,
    spoil_black,
    vectors_of,
    video,
)

Hook = Callable[[int], None]


@pytest.fixture
def model(options_for: Make) -> SiglipModel:
    model = get_model(options_for("siglip2"))
    model.settled_batch_size = None
    return model


@pytest.fixture
def on_forward(model: SiglipModel) -> Iterator[Callable[[Hook], None]]:
    """Run a function before each forward pass, with the batch size."""
    handles = []

    def add(hook: Hook) -> None:
        handles.append(
            model.vision.register_forward_pre_hook(
                lambda _module, _args, kwargs: hook(len(kwargs["pixel_values"])), with_kwargs=True
            )
        )

    yield add
    for handle in handles:
        handle.remove()


def jpegs(count: int, *, seed: int = 0, shape: tuple[int, int] = (72, 96)) -> list[bytes]:
    return [jpeg(picture(*shape, seed=1000 * seed + i)) for i in range(count)]


def films(*counts: int) -> list[Video]:
    shapes = [(72, 96), (96, 54), (64, 64)]
    return [
        video(f"film{i}.mp4", jpegs(n, seed=i, shape=shapes[i % 3]), rows=5)
        for i, n in enumerate(counts)
    ]


def run(engine: EmbeddingEngine, videos: Any) -> list[EmbeddingBatch | VideoError]:
    return list(engine.embed(videos))


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_every_video_gets_the_vectors_of_its_own_frames(
    kind: Kind, batch_size: Any, options_for: Make
) -> None:
    model = get_model(options_for(kind))
    videos = films(7, 0, 1, 13, 2)
    engine = EmbeddingEngine(model, batch_size=batch_size)
    results = run(engine, videos)
    assert [r.video for r in results] == [name for name, _ in videos]
    for result, (_, batches) in zip(results, videos, strict=True):
        frames = [data for batch in batches for data in batch.jpegs]
        assert isinstance(result, EmbeddingBatch)
        assert result.frame_index_N.tolist() == [25 * i for i in range(len(frames))]
        assert result.time_seconds_N.tolist() == [float(i) for i in range(len(frames))]
        alone = extract_image_embeddings(frames, model=model)
        np.testing.assert_allclose(result.embeddings_ND, alone, atol=1e-5)
    report = engine.report
    assert (report.frames, report.videos, report.failed_videos) == (23, 5, 0)


def test_short_videos_fill_batches_together(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    sizes: list[int] = []
    on_forward(sizes.append)
    engine = EmbeddingEngine(model, batch_size=8)
    assert len(run(engine, films(*[1] * 20))) == 20
    assert sizes == [8, 8, 4]
    assert engine.report.batch_fill_share == pytest.approx(20 / 24)


def test_results_come_while_later_videos_are_still_being_read(model: SiglipModel) -> None:
    first_is_here = threading.Event()

    def endless() -> Iterator[Video]:
        yield from films(4, 4)
        assert first_is_here.wait(30), "the first video was not handed over as it went"
        yield from films(4)

    results = EmbeddingEngine(model, batch_size=4).embed(endless())
    assert next(results).video == "film0.mp4"
    first_is_here.set()
    assert len(list(results)) == 2


def test_frames_are_read_ahead_of_the_model(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    read = 0
    frames = jpegs(60)

    def reading() -> Iterator[FrameBatch]:
        nonlocal read
        for batch in video("a.mp4", frames, rows=2)[1]:
            read += len(batch)
            yield batch

    late: list[int] = []

    def compute(_: int) -> None:
        # While a batch is being computed, two more must be read: nothing else will wake them.
        enough = min(60, 4 * (len(late) + 3))
        deadline = time.monotonic() + 20
        while read < enough and time.monotonic() < deadline:
            time.sleep(0.002)
        late.append(max(0, enough - read))

    on_forward(compute)
    run(EmbeddingEngine(model, batch_size=4), [("a.mp4", reading())])
    assert late == [0] * 15


def test_a_long_video_is_streamed(model: SiglipModel, on_forward: Callable[[Hook], None]) -> None:
    read = computed = most_ahead = 0
    [data] = jpegs(1)

    def reading() -> Iterator[FrameBatch]:
        nonlocal read, most_ahead
        for batch in video("day.mp4", [data] * 3000, rows=16)[1]:
            read += len(batch)
            most_ahead = max(most_ahead, read - computed)
            yield batch

    def count(frames: int) -> None:
        nonlocal computed
        computed += frames

    on_forward(count)
    [result] = run(
        EmbeddingEngine(model, batch_size=16, decode_threads=2), [("day.mp4", reading())]
    )
    assert len(vectors_of(result)) == 3000
    assert most_ahead < 200


def test_a_slow_caller_holds_the_engine_back(model: SiglipModel) -> None:
    read = 0

    def many() -> Iterator[Video]:
        nonlocal read
        [data] = jpegs(1)
        for i in range(400):
            read += 4
            yield video(f"{i}.mp4", [data] * 4)

    results = EmbeddingEngine(model, batch_size=8).embed(many())
    next(results)
    # Nobody takes results: only the frames in flight and the waiting vectors are read, in the end.
    before = -1
    while before != read:
        before = read
        time.sleep(0.5)
    assert read < 400
    assert len(list(results)) == 399


def good_and(bad: Any) -> list[tuple[str, Any]]:
    first, last = films(5, 6)
    return [first, ("bad.mp4", bad), last]


def assert_only_bad_failed(
    results: list[EmbeddingBatch | VideoError], model: SiglipModel, says: str
) -> None:
    assert [r.video for r in results] == ["film0.mp4", "bad.mp4", "film1.mp4"]
    error = results[1]
    assert isinstance(error, VideoError)
    assert says in error.reason
    for result, (_, batches) in zip(results[::2], films(5, 6), strict=True):
        frames = [data for batch in batches for data in batch.jpegs]
        alone = extract_image_embeddings(frames, model=model)
        np.testing.assert_allclose(vectors_of(result), alone, atol=1e-5)


def raising(error: Exception) -> Iterator[FrameBatch]:
    yield from films(9)[0][1][:1]
    raise error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FrameStoreError("frames of 'bad.mp4' are missing"), "frames of 'bad.mp4' are missing"),
        (VideoError("bad.mp4", "no moov atom"), "no moov atom"),
        (OSError("disk on fire"), "cannot be read (OSError: disk on fire)"),
        (RuntimeError("anything else"), "cannot be read (RuntimeError: anything else)"),
    ],
)
def test_frames_that_cannot_be_read_cost_one_video(
    error: Exception, says: str, model: SiglipModel
) -> None:
    engine = EmbeddingEngine(model, batch_size=4)
    assert_only_bad_failed(run(engine, good_and(raising(error))), model, says)
    assert (engine.report.videos, engine.report.failed_videos) == (2, 1)


@pytest.mark.parametrize("position", [0, 3, 8])
@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff not a jpeg", jpegs(1)[0][:300]])
def test_a_damaged_jpeg_costs_one_video(position: int, data: bytes, model: SiglipModel) -> None:
    frames = jpegs(9)
    frames[position] = data
    bad = video("bad.mp4", frames, rows=4)[1]
    says = f"frame {25 * position} at {position:.3f} s: its stored JPEG is not a picture"
    assert_only_bad_failed(run(EmbeddingEngine(model, batch_size=4), good_and(bad)), model, says)


def test_a_vector_that_is_not_finite_costs_one_video(model: SiglipModel) -> None:
    # The sole black frame of the three videos makes the model overflow.
    frames = jpegs(6)
    frames[2] = jpeg(np.zeros((64, 64, 3), np.uint8))

    handle = model.vision.register_forward_hook(spoil_black, with_kwargs=True)
    try:
        bad = video("bad.mp4", frames)[1]
        results = run(EmbeddingEngine(model, batch_size=4), good_and(bad))
    finally:
        handle.remove()
    assert_only_bad_failed(results, model, "frame 50 at 2.000 s: its vector is not finite")


def test_what_the_callers_iterator_raises_is_raised(model: SiglipModel) -> None:
    def videos() -> Iterator[Video]:
        yield from films(3, 4)
        raise ConnectionError("the list of videos is gone")

    with pytest.raises(ConnectionError, match="the list of videos is gone"):
        run(EmbeddingEngine(model, batch_size=2), videos())
    assert_no_threads()


def test_an_error_of_the_model_is_raised(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    on_forward(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(EmbeddingEngine(model), films(3))
    assert_no_threads()


def assert_no_threads() -> None:
    left = [t.name for t in threading.enumerate() if t.name.startswith("siglip-")]
    assert left == []


def test_closing_early_ends_all_threads(model: SiglipModel) -> None:
    def forever() -> Iterator[Video]:
        yield from films(3)
        while True:
            yield films(2)[0]

    results = EmbeddingEngine(model, batch_size=4).embed(forever())
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert_no_threads()


class _ClosedBeneath:
    """A decoder that is closed while a batch begins."""

    name, notes = "closed", ()

    def __init__(self, host: ThreadDecoder) -> None:
        self._host = host
        self._closed = threading.Event()
        self.begun = 0

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        self.begun += 1
        if self.begun > 1:
            assert self._closed.wait(30)
        return self._host.begin(jpegs)

    def close(self) -> None:
        self._host.close()
        self._closed.set()


class _Broken:
    """A decoder that cannot begin a batch."""

    name, notes = "broken", ()

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        raise RuntimeError(f"{len(jpegs)} pictures cannot be parsed")

    def close(self) -> None:
        pass


def test_an_error_of_the_decoder_is_raised(model: SiglipModel) -> None:
    """Of more videos than the budget of frames holds: none of theirs would ever be released."""
    with pytest.raises(RuntimeError, match="2 pictures cannot be parsed"):
        run(EmbeddingEngine(model, batch_size=2, decoder=_Broken), films(*[2] * 30))
    assert_no_threads()


def test_closing_early_is_no_failure_of_a_video(
    model: SiglipModel, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = _ClosedBeneath(ThreadDecoder(model.recipe, threads=1, on_card=False))
    results = EmbeddingEngine(model, batch_size=4, decoder=lambda: decoder).embed(films(4, 8))
    next(results)
    while decoder.begun < 2:
        time.sleep(0.01)
    results.close()  # type: ignore[attr-defined]
    assert caplog.messages == []
    assert_no_threads()


def limited_to(frames: int) -> Hook:
    def allocate(batch: int) -> None:
        if batch > frames:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {batch} frames")

    return allocate


@pytest.mark.parametrize(("limit", "settles"), [(16, 16), (7, 4), (1, 1)])
def test_out_of_memory_halves_the_batch_and_goes_on(
    limit: int, settles: int, model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    videos = films(20, 3, 30)
    right = run(EmbeddingEngine(model, batch_size=4), videos)
    on_forward(limited_to(limit))
    engine = EmbeddingEngine(model, batch_size=16)
    for got, wanted in zip(run(engine, videos), right, strict=True):
        np.testing.assert_allclose(vectors_of(got), vectors_of(wanted), atol=1e-5)
    assert engine.report.batch_size == settles
    assert (engine.report.out_of_memory_count > 0) == (limit < 16)


def test_a_batch_filled_before_the_size_shrank_goes_on(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    deadline = time.monotonic() + 20

    def in_time(_: Progress) -> None:
        assert time.monotonic() < deadline, "the run hangs"

    def reading() -> Iterator[FrameBatch]:
        batches = iter(video("a.mp4", jpegs(63), rows=21)[1])
        yield from (next(batches), next(batches))  # a batch of 32, and 10 of the next
        while engine.report.batch_size > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        yield from batches

    on_forward(limited_to(1))
    engine = EmbeddingEngine(model, batch_size=32, on_progress=in_time, progress_seconds=0)
    [result] = run(engine, [("a.mp4", reading())])
    assert len(vectors_of(result)) == 63


def test_no_room_for_a_single_frame_is_an_error(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    on_forward(limited_to(0))
    with pytest.raises(EmbeddingError, match="one frame does not fit in the memory of cpu"):
        run(EmbeddingEngine(model, batch_size=4), films(9))
    assert_no_threads()


def test_a_batch_size_below_one_is_refused(options_for: Make) -> None:
    model = load_model(options_for("siglip2"), "cpu", torch.float32, tower="image")
    with pytest.raises(ValueError, match="batch_size=0"):
        EmbeddingEngine(model, batch_size=0)


def test_the_settled_batch_size_is_remembered(model: SiglipModel) -> None:
    # More frames than climbing to the largest size takes, however the timings fall.
    run(EmbeddingEngine(model), films(1200))
    settled = model.settled_batch_size
    assert settled is not None
    engine = EmbeddingEngine(model)
    run(engine, films(2))
    assert engine.report.batch_size == settled


def climb(
    seconds_of: Callable[[int], float], kind: str = "cpu", most: int | None = None
) -> BatchSize:
    sizes = BatchSize(kind=kind, most=most)
    while not sizes.settled:
        sizes.measured(sizes.current, seconds_of(sizes.current))
    return sizes


@pytest.mark.parametrize(
    ("seconds_of", "settles"),
    [
        (lambda n: 0.1 * n, 4),  # no gain from batching
        (lambda n: 1.0, 64),  # batches are free: up to the limit
        (lambda n: 0.5 + 0.01 * max(n, 16), 64),
        (lambda n: 0.1 * n if n < 16 else 0.04 * n if n == 16 else 0.05 * n, 4),
        (lambda n: 1.0 if n <= 16 else n / 8, 16),
    ],
)
def test_the_batch_grows_while_that_pays(seconds_of: Callable[[int], float], settles: int) -> None:
    assert climb(seconds_of).current == settles


def of_base(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "family": "siglip", "resample": "bilinear", "scale": 1 / 255, "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5), "patch_size": 16, "size": 256, "max_num_patches": None,
        "text_length": 64,
    }  # fmt: skip
    return Recipe(**values | changes)


@pytest.mark.parametrize(
    ("recipe", "dim", "settles"),
    [
        (of_base(), 768, 8),
        (of_base(size=384, patch_size=14), 1152, 2),  # so400m
        (of_base(size=None, max_num_patches=256), 768, 8),
        (of_base(size=None, max_num_patches=65_536), 1536, 1),
        (of_base(size=72, patch_size=12), 128, 64),  # of the demo
    ],
)
def test_batches_of_large_models_stay_small_on_a_cpu(
    recipe: Recipe, dim: int, settles: int
) -> None:
    assert climb(lambda n: 1.0, most=cpu_batch_limit(recipe, dim)).current == settles


def test_partial_batches_teach_nothing() -> None:
    sizes = BatchSize(kind="cpu")
    for _ in range(50):
        sizes.measured(3, 1e-9)
    assert (sizes.current, sizes.settled) == (4, False)


def test_progress_comes_at_most_so_often_and_once_at_the_end(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    on_forward(lambda _: time.sleep(0.03))
    seen: list[tuple[float, Progress]] = []
    engine = EmbeddingEngine(
        model,
        batch_size=2,
        on_progress=lambda p: seen.append((time.monotonic(), p)),
        progress_seconds=0.2,
    )
    began = time.monotonic()
    assert len(list(engine.embed(films(10, 50), frames_total=60))) == 2
    assert len(seen) >= 3
    # All but the last; one that came late was due earlier.
    assert seen[-2][0] - began >= 0.2 * (len(seen) - 1)
    assert seen[-1][1].frames == 60
    assert seen[-1][1].seconds_left == 0
    halfway = seen[len(seen) // 2][1]
    assert 0 < halfway.frames <= 60
    assert halfway.seconds_left is not None
    assert "of 60 frames embedded" in str(halfway)


def test_the_report_says_what_the_run_cost(
    model: SiglipModel, on_forward: Callable[[Hook], None]
) -> None:
    with pytest.raises(RuntimeError, match="nothing was embedded yet"):
        _ = EmbeddingEngine(model).report
    on_forward(lambda _: time.sleep(0.05))
    engine = EmbeddingEngine(model, batch_size=4)
    began = time.monotonic()
    run(engine, films(40))
    took = time.monotonic() - began
    report = engine.report
    assert 0.5 < report.seconds <= took
    assert report.frames_per_second == pytest.approx(40 / report.seconds)
    # The hook sleeps inside the model's time: ten batches of at least 50 ms.
    assert 0.5 / report.seconds <= report.model_busy_share <= 1
    assert (report.device, report.dtype, report.batch_size) == ("cpu", "float32", 4)
    assert "cpu" in report.device_name
    assert report.peak_memory_bytes > 50e6
    assert report.padding_share == 0
    assert sum(p.frames_per_second for p in report.throughput) > 0
    assert engine.report.seconds == report.seconds, "the clock goes on after the run"


def test_naflex_padding_is_reported(options_for: Make) -> None:
    engine = EmbeddingEngine(get_model(options_for("naflex")), batch_size=2)
    run(engine, [video("one.mp4", jpegs(4, shape=(64, 64)))])
    assert engine.report.padding_share == 0
    # 64 patches of 8 x 8 beside 63 of 3 x 21
    mixed = [*jpegs(1, shape=(64, 64)), *jpegs(1, shape=(48, 330))]
    run(engine, [video("two.mp4", mixed)])
    assert 0 < engine.report.padding_share < 0.2
