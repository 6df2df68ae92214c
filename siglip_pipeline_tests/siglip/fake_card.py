"""A simulated card: its graphs, its streams and its JPEG decoder, computed on the CPU."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import simplejpeg
import torch

from siglip_pipeline.siglip.forward import Replay
from siglip_pipeline.siglip.streams import HostStreams


class FakeGraphs:
    """Captures as a card does: a replay computes again from the same memory."""

    def __init__(
        self, *, fits: int = 1 << 30, error: Exception | None = None, empty: bool = False
    ) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self._fits = fits
        self._error = error
        self._empty = empty

    def __call__(self, run: Callable[[], torch.Tensor], device: torch.device) -> Replay:
        assert device.type == "cpu"
        if self._error is not None:
            raise self._error
        output = run()
        size = len(output)
        if size > self._fits:
            try:
                raise torch.OutOfMemoryError(f"no room for the graph of {size}")
            finally:  # as torch does: ending the capture fails as well
                raise RuntimeError("operation failed due to a previous error during capture")
        self.captured.append(size)

        def replay() -> torch.Tensor:
            self.replayed.append(size)
            return output if self._empty else run().clone()

        return replay


class FakeStreams(HostStreams):
    """A card that still works when a launch returns: vectors come with the last mark."""

    ahead = True
    unordered: bool
    """Whether the model does not wait yet for what was done on the side."""

    def __init__(self) -> None:
        self.handed_over = 0
        self._on_side = False
        self.unordered = False

    def side(self) -> AbstractContextManager[object]:
        @contextlib.contextmanager
        def inside() -> Iterator[None]:
            assert not self._on_side
            self._on_side = self.unordered = True
            try:
                yield
            finally:
                self._on_side = False

        return inside()

    def hand_over(self, tensors: Iterable[torch.Tensor]) -> None:
        assert not self._on_side
        self.unordered = False
        self.handed_over += 1


class FakeCodec:
    """Stands for the module nvidia.nvimgcodec."""

    __version__ = "0.9.0"

    def __init__(self, *, shifted: int = 0, refuses: Callable[[bytes], bool] = lambda _: False):
        self.decoded = 0
        self._shifted = shifted
        self._refuses = refuses

    def CodeStream(self, jpeg: bytes) -> "FakeStream":
        return FakeStream(jpeg)

    def Decoder(self, *, device_id: int, options: str) -> "FakeCodec":
        assert (device_id, options) == (0, ":fancy_upsampling=1")
        return self

    def decode(self, streams: list["FakeStream"], *, cuda_stream: int) -> list[object]:
        images: list[object] = []
        for stream in streams:
            if self._refuses(stream.jpeg):
                images.append(None)
                continue
            self.decoded += 1
            pixels = simplejpeg.decode_jpeg(stream.jpeg, "RGB", strict=False)
            images.append(torch.from_numpy(pixels + np.uint8(self._shifted)))
        return images


class FakeStream:
    """A JPEG, parsed when it is first asked for something, as by the module (0.9)."""

    codec_name = "jpeg"

    def __init__(self, jpeg: bytes) -> None:
        self.jpeg = jpeg

    def _header(self) -> tuple[int, int, str, str]:
        try:
            header: tuple[int, int, str, str] = simplejpeg.decode_jpeg_header(self.jpeg)
        except ValueError as error:
            raise RuntimeError("Failed to get image info") from error
        return header

    @property
    def height(self) -> int:
        return self._header()[0]

    @property
    def width(self) -> int:
        return self._header()[1]

    @property
    def num_channels(self) -> int:
        return 1 if self._header()[2] == "Gray" else 3
