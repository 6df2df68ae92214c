"""Threads, processes and a card's decoder give the same pictures and the same errors."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.siglip import jpeg_card, jpeg_choice
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.jpeg_card import CardDecoder
from siglip_pipeline.siglip.jpeg_choice import choose_decoder
from siglip_pipeline.siglip.jpeg_decoders import Decoded, Decoding, PictureDecoder, ThreadDecoder
from siglip_pipeline.siglip.jpeg_processes import ProcessDecoder
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import ImageBatch
from siglip_pipeline_tests.processes import descendants, has_ended
from siglip_pipeline_tests.siglip.conftest import jpeg, picture, real_jpegs, vectors_of, video
from siglip_pipeline_tests.siglip.fake_card import FakeCodec

Kept = Callable[[PictureDecoder], PictureDecoder]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Close a decoder at the end of the test."""
    made: list[PictureDecoder] = []

    def keep(decoder: PictureDecoder) -> PictureDecoder:
        made.append(decoder)
        return decoder

    yield keep
    for decoder in made:
        decoder.close()


@pytest.fixture(autouse=True)
def _stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_card, "current_stream", lambda: (0, 7))


MIXED = [
    *real_jpegs()[:3],
    b"no jpeg",
    real_jpegs()[3][:900],
    jpeg(picture(72, 96)),
    jpeg(picture(900, 1600)),  # shrinks by more than a card does
    jpeg(picture(64, 64)),  # the size of the model: not resized
    real_jpegs()[4],
]


def pixels(batch: ImageBatch) -> list[np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for group in batch.groups:
        for place, image in zip(group.positions.tolist(), group.pixels_NHWC, strict=True):
            found[place] = image.numpy()
    return [found[i] for i in range(len(batch))]


def assert_same(found: Decoded, wanted: Decoded) -> None:
    assert (found.rows, found.errors) == (wanted.rows, wanted.errors)
    assert found.batch is not None
    assert wanted.batch is not None
    for one, other in zip(pixels(found.batch), pixels(wanted.batch), strict=True):
        np.testing.assert_array_equal(one, other)


def by_threads(model: SiglipModel, kept: Kept, jpegs: Sequence[bytes]) -> Decoded:
    return kept(ThreadDecoder(model.recipe, threads=2, on_card=False)).begin(jpegs)()


def test_processes_give_what_threads_give(model: SiglipModel, kept: Kept) -> None:
    processes = kept(ProcessDecoder(model.recipe, processes=2, on_card=False))
    batches = [MIXED, MIXED * 4, MIXED[3:4]]
    begun = [processes.begin(batch) for batch in batches]
    for decoding, batch in zip(begun[:2], batches, strict=False):
        assert_same(decoding(), by_threads(model, kept, batch))
    assert begun[2]().batch is None
    assert processes.name == "2 processes"
    assert processes.notes == ()


def process_ids() -> list[int]:
    """The processes of this one that decode, oldest first."""
    found = descendants("jpeg_child")
    return [p.pid for p in sorted(found, key=lambda p: p.create_time())]


def shared_with(pid: int) -> list[str]:
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(descriptor.readlink()))
    return [name for name in found if "siglip-pictures" in name]


def test_a_process_that_dies_costs_no_picture(model: SiglipModel, kept: Kept) -> None:
    decoder = kept(ProcessDecoder(model.recipe, processes=2, on_card=False))
    before = process_ids()
    os.kill(before[0], signal.SIGSTOP)
    begun = [decoder.begin(MIXED * 3) for _ in range(3)]
    time.sleep(0.2)  # it holds a task
    os.kill(before[0], signal.SIGKILL)
    wanted = by_threads(model, kept, MIXED * 3)
    for decoding in begun:
        assert_same(decoding(), wanted)
    assert process_ids() != before
    assert "a decoding process ended" in decoder.notes[0]


def test_a_picture_that_ends_every_process_fails_alone(
    model: SiglipModel, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = ProcessDecoder(model.recipe, processes=1, on_card=False)
    kept(decoder)
    ask = decoder._ask

    def bomb(jpegs: Sequence[bytes]) -> object:
        if b"bomb" in jpegs:
            os.kill(process_ids()[0], signal.SIGKILL)
        return ask(jpegs)

    monkeypatch.setattr(decoder, "_ask", bomb)
    found = decoder.begin([*real_jpegs()[:2], b"bomb", *real_jpegs()[2:4]])()
    assert found.rows == [0, 1, 3, 4]
    assert found.errors == {2: "not a picture that can be read (its decoder ends)"}


def test_closing_leaves_no_process_and_no_memory(model: SiglipModel) -> None:
    decoder = ProcessDecoder(model.recipe, processes=2, on_card=False)
    pids = process_ids()
    assert shared_with(os.getpid())
    os.kill(pids[0], signal.SIGSTOP)  # it answers no more
    for _ in range(3):
        decoder.begin(MIXED)
    decoder.close()
    assert all(has_ended(pid) for pid in pids)
    assert shared_with(os.getpid()) == []


def test_an_engine_that_is_left_early_ends_its_processes(model: SiglipModel) -> None:
    made: list[ProcessDecoder] = []

    def processes() -> PictureDecoder:
        made.append(ProcessDecoder(model.recipe, processes=2, on_card=False))
        return made[0]

    films = [video(f"{i}.mp4", real_jpegs()) for i in range(30)]
    results = EmbeddingEngine(model, batch_size=8, decoder=processes).embed(films)
    assert isinstance(next(results), EmbeddingBatch)
    pids = process_ids()
    results.close()  # type: ignore[attr-defined]
    assert all(has_ended(pid) for pid in pids)


def test_processes_that_cannot_start_are_said(
    model: SiglipModel, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere"])
    found = kept(choose_decoder(model.recipe, torch.device("cuda"), 6))
    assert found.name == "6 threads"
    assert any("decoding processes cannot be started" in note for note in found.notes)


def test_a_process_that_cannot_start_leaves_no_descriptor(
    model: SiglipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        ProcessDecoder(model.recipe, processes=2, on_card=False)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_the_cards_decoder_gives_what_the_host_gives(model: SiglipModel, kept: Kept) -> None:
    refused = real_jpegs()[2]
    codec = FakeCodec(refuses=lambda data: data == refused)
    host = ThreadDecoder(model.recipe, threads=1, on_card=True)
    card = kept(CardDecoder(model.recipe, host, codec))
    trial = codec.decoded
    found = card.begin(MIXED)()
    assert found.errors == by_threads(model, kept, MIXED).errors
    assert found.rows == [0, 1, 2, 5, 6, 7, 8]
    assert codec.decoded - trial == 5  # neither damaged ones, nor the large one, nor the refused
    assert found.batch is not None
    own = model.inputs(found.batch).arguments["pixel_values"]
    wanted = by_threads(model, kept, MIXED).batch
    assert wanted is not None
    np.testing.assert_allclose(own, model.inputs(wanted).arguments["pixel_values"], atol=0.02)
    assert card.name == "nvImageCodec 0.9.0"


def test_a_card_with_other_pixels_is_not_used(model: SiglipModel) -> None:
    host = ThreadDecoder(model.recipe, threads=1, on_card=True)
    with pytest.raises(ValueError, match="pixels differ from the host's by 1"):
        CardDecoder(model.recipe, host, FakeCodec(shifted=1))
    with pytest.raises(ValueError, match="it decodes no JPEG"):
        CardDecoder(model.recipe, host, FakeCodec(refuses=lambda _: True))
    host.close()


@pytest.mark.parametrize(
    ("device", "cores", "name", "note"),
    [
        ("cpu", 8, "8 threads", None),
        ("cuda", 4, "4 threads", "nvImageCodec is not installed"),
        ("cuda", 5, "5 processes", "nvImageCodec is not installed"),
    ],
)
def test_what_is_chosen_and_why(
    model: SiglipModel, kept: Kept, device: str, cores: int, name: str, note: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    chosen = kept(choose_decoder(model.recipe, torch.device(device), cores))
    assert chosen.name == name
    assert [text[:29] for text in chosen.notes] == ([] if note is None else [note])
    assert (note or "") in caplog.text


def test_without_memory_to_share_threads_decode(
    model: SiglipModel, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg_choice, "can_share_memory", lambda: False)
    assert kept(choose_decoder(model.recipe, torch.device("cuda"), 8)).name == "8 threads"


class _Scarce:
    """A decoder on a card whose memory is full, once."""

    name, notes = "scarce", ("as a test",)

    def __init__(self, host: ThreadDecoder) -> None:
        self._host = host
        self._full = True
        self.close = host.close

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        decoding = self._host.begin(jpegs)

        def decoded() -> Decoded:
            if self._full:
                self._full = False
                raise torch.OutOfMemoryError("no room for pictures")
            return decoding()

        return decoded


def test_pictures_that_do_not_fit_are_decoded_again(model: SiglipModel) -> None:
    engine = EmbeddingEngine(
        model,
        batch_size=4,
        decoder=lambda: _Scarce(ThreadDecoder(model.recipe, threads=1, on_card=False)),
    )
    good = real_jpegs()
    bad = [*good[:5], b"no jpeg", *good[6:]]
    first, second = engine.embed([video("a.mp4", good), video("b.mp4", bad)])
    assert np.isfinite(vectors_of(first)).all()
    assert isinstance(second, VideoError)
    assert "frame 125 at 5.000 s: its stored JPEG is not a picture" in second.reason
    report = engine.report
    assert (report.out_of_memory_count, report.batch_size) == (1, 2)
    assert (report.decoder, report.notes) == ("scarce", ("as a test",))
