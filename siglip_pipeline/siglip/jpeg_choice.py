"""Choose what decodes the JPEGs of a run: the card, processes or threads."""

import importlib.util
import logging
from typing import Final

import torch

from siglip_pipeline.siglip.jpeg_card import CardDecoder
from siglip_pipeline.siglip.jpeg_decoders import PictureDecoder, ThreadDecoder
from siglip_pipeline.siglip.jpeg_processes import ProcessDecoder, can_share_memory
from siglip_pipeline.siglip.recipe import Recipe

_log = logging.getLogger(__name__)

MOST_THREADS: Final = 4
"""With more, threads wait for each other and for the card's thread. Measured with 16 cores: 4,124
JPEGs a second in threads, 7,606 in processes."""


def choose_decoder(recipe: Recipe, device: torch.device, cores: int) -> PictureDecoder:
    """Return the fastest decoder that works here; its notes say why it is not a faster one.

    Args:
        recipe: of the model.
        device: that runs the model. A CPU is slower than threads that decode for it.
        cores: pictures decoded at once on the host.
    """
    if device.type != "cuda":
        return ThreadDecoder(recipe, threads=cores, on_card=False)
    notes = []
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec"):
        host = ThreadDecoder(recipe, threads=min(cores, MOST_THREADS), on_card=True)
        try:
            with torch.cuda.device(device):
                return CardDecoder(recipe, host)
        except ValueError as error:
            host.close()
            notes.append(f"{error}; JPEGs are decoded on the host")
    else:
        notes.append("nvImageCodec is not installed (pip install 'siglip-pipeline[cuda]')")
    decoder: ThreadDecoder | None = None
    if cores > MOST_THREADS and can_share_memory():
        try:
            decoder = ProcessDecoder(recipe, processes=cores, on_card=True)
        except (EOFError, OSError) as error:
            notes.append(f"decoding processes cannot be started: {error}")
    decoder = decoder or ThreadDecoder(recipe, threads=cores, on_card=True)
    decoder.notes = tuple(notes)
    for note in notes:
        _log.warning("%s", note)
    return decoder
