"""Choose the batch size of a GPU: measure prepared tensors while nothing else runs.

Measured on the batches of a run, larger sizes lose against 32: Python threads that decode hold the
interpreter while the GPU waits for its next launch. The result is kept per model, card, number
format and versions, as it takes seconds and runs are processes of their own.
"""

import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from siglip_pipeline.siglip.device import device_name, give_back_memory, is_out_of_memory
from siglip_pipeline.siglip.json_cache import add_to_cache, read_cache
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import Prepared, assemble
from siglip_pipeline.siglip.recipe import target_size

_log = logging.getLogger(__name__)

SIZES: Final = (32, 64, 128, 256, 512)
_WORTH_GROWING: Final = 1.03
_BATCHES: Final = 3
"""Measured batches of a size, after one that allocates and selects kernels."""
_WIDE: Final = (720, 1280)
"""The picture of a NaFlex probe, whose patches depend on the aspect ratio."""

Measure = Callable[[SiglipModel, int], float]
"""Returns the seconds of one frame in batches of a size; raises when memory runs out."""


def probed_batch_size(
    model: SiglipModel, *, kept: Path | None = None, measure: Measure | None = None
) -> int:
    """Return the smallest size whose throughput no larger one beats by more than 3%.

    Args:
        model: a model whose vision tower is loaded.
        kept: a JSON file of earlier results; None to probe each time.
        measure: measures a size.
    """
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    key = f"{model.spec.key} {device_name(model.device)} {model.dtype} {versions}"
    if kept is not None and (size := read_cache(kept).get(key)) in SIZES:
        return int(size)
    size = _probe(model, measure or seconds_per_frame)
    _log.info("%s embeds fastest in batches of %d", key, size)
    if kept is not None:
        add_to_cache(kept, key, size)
    return size


def _probe(model: SiglipModel, measure: Measure) -> int:
    best, fastest = SIZES[0], float("inf")
    for size in SIZES:
        try:
            seconds = measure(model, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            model.forward.forget(above=0)
            give_back_memory()
        if seconds * _WORTH_GROWING < fastest:
            best, fastest = size, seconds
    return best


def seconds_per_frame(model: SiglipModel, size: int) -> float:
    """Return the seconds of one frame in batches of grey pictures that lie on the device.

    What is measured is what a run repeats: a graph of that size where the model has graphs.
    """
    height, width = target_size(*_WIDE, model.recipe)
    pixels_HWC = torch.full((height, width, 3), 128, dtype=torch.uint8)
    batch = assemble([Prepared(pixels_HWC, height, width)] * size)
    inputs = model.inputs(batch.to(model.torch_device))
    model.forward(model, inputs, capacity=size).cpu()
    began = time.perf_counter()
    for _ in range(_BATCHES):
        vectors_ND = model.forward(model, inputs, capacity=size)
    vectors_ND.cpu()  # waits for all of them
    return (time.perf_counter() - began) / (_BATCHES * size)
