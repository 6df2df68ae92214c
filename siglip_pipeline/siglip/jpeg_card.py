"""Decode JPEGs on the card by nvImageCodec, which the extra ``cuda`` installs.

The thread that runs the model decodes a whole batch, on the stream that is current. What the card
may read otherwise than the host is decoded on the host: JPEGs that are cut off, that are not RGB,
or that need more shrinking than torch's CUDA kernel does.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.dlpack import from_dlpack

from siglip_pipeline.siglip.jpeg_decoders import Decoded, Decoding, ThreadDecoder, results
from siglip_pipeline.siglip.preprocess import Prepared, suits_a_gpu
from siglip_pipeline.siglip.recipe import Recipe, target_size

MOST_DIFFERENCE: Final = 0.5
"""Largest mean difference of its pixels from the host's, of 255. On an H200 there was none."""

_END_OF_IMAGE: Final = b"\xff\xd9"


class CardDecoder:
    """Decode on the card; on the host what the card should not or cannot decode.

    Args:
        recipe: of the model.
        host: decodes the other pictures.
        nvimgcodec: the module, or one that stands for it.

    Raises:
        ValueError: its pixels are not the host's, or it does not work here.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, recipe: Recipe, host: ThreadDecoder, nvimgcodec: Any = None) -> None:
        self._recipe = recipe
        self._host = host
        self._decoders: dict[int, Any] = {}
        try:
            self._codec = nvimgcodec or importlib.import_module("nvidia.nvimgcodec")
            difference = self._difference()
        # An extension module: on a machine that it does not fit it raises anything.
        except Exception as error:
            raise ValueError(f"nvImageCodec: {type(error).__name__}: {error}") from error
        if not difference <= MOST_DIFFERENCE:
            raise ValueError(
                f"nvImageCodec: its pixels differ from the host's by {difference:.2f} of 255"
            )
        self.name = f"nvImageCodec {self._codec.__version__}"

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        """Begin what the host decodes; the card decodes when the result is asked for."""
        streams = {i: s for i, jpeg in enumerate(jpegs) if (s := self._stream(jpeg)) is not None}
        others = [i for i in range(len(jpegs)) if i not in streams]
        tasks = self._host.start([jpegs[i] for i in others])

        def decoded() -> Decoded:
            pictures: dict[int, Prepared | ValueError] = {
                i: Prepared(
                    from_dlpack(image),
                    *target_size(streams[i].height, streams[i].width, self._recipe),
                )
                for i, image in zip(streams, self._images(list(streams.values())), strict=True)
                if image is not None
            }
            pictures |= zip(others, results(tasks), strict=True)
            refused = [i for i in streams if i not in pictures]
            pictures |= zip(refused, self._host.decode([jpegs[i] for i in refused]), strict=True)
            return Decoded.of([pictures[i] for i in range(len(jpegs))], pinned=True)

        return decoded

    def close(self) -> None:
        """End the host's threads and free the decoders."""
        self._host.close()
        self._decoders.clear()

    def _stream(self, jpeg: bytes) -> Any | None:
        """Return the parsed JPEG if the card should decode it."""
        if not jpeg.endswith(_END_OF_IMAGE):
            return None
        try:
            stream = self._codec.CodeStream(jpeg)
            height, width = stream.height, stream.width  # 0.9 parses now, not in the constructor
        except RuntimeError:
            return None
        target = target_size(height, width, self._recipe)
        fits = stream.codec_name == "jpeg" and stream.num_channels == 3
        return stream if fits and suits_a_gpu(height, width, *target) else None

    def _images(self, streams: list[Any]) -> list[Any]:
        """Return each picture on the card, or None where it could not be decoded."""
        device, cuda_stream = current_stream()
        if device not in self._decoders:
            # Colours between those of neighbouring samples, as libjpeg gives them.
            self._decoders[device] = self._codec.Decoder(
                device_id=device, options=":fancy_upsampling=1"
            )
        if not streams:
            return []
        images: list[Any] = self._decoders[device].decode(streams, cuda_stream=cuda_stream)
        return images

    def _difference(self) -> float:
        """Return the mean difference between the card's and the host's pixels of one picture."""
        blobs = np.random.default_rng(0).integers(0, 256, (27, 48, 3), dtype=np.uint8)
        shown = Image.fromarray(blobs).resize((768, 432), Image.Resampling.BICUBIC)
        jpeg = simplejpeg.encode_jpeg(np.array(shown), quality=90, colorsubsampling="420")
        [image] = self._images([self._codec.CodeStream(jpeg)])
        if image is None:
            raise RuntimeError("it decodes no JPEG")
        found = from_dlpack(image).cpu().to(torch.float32)
        wanted = torch.from_numpy(simplejpeg.decode_jpeg(jpeg, "RGB")).to(torch.float32)
        return float((found - wanted).abs().mean())


def current_stream() -> tuple[int, int]:
    """Return the number of the current card, and its current stream as nvImageCodec takes it."""
    return torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream
