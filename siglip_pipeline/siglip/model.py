"""Load the model on first use, once per process; release it on request.

The first call of ``get_model`` loads the model (seconds); later calls return the same object. A
process that only searches loads the text tower and never reads the vision weights.
"""

import gc
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from siglip_pipeline.errors import CorruptWeightsError
from siglip_pipeline.siglip import device as devices
from siglip_pipeline.siglip.card_lease import CardLease
from siglip_pipeline.siglip.checkpoint import Checkpoint, open_checkpoint
from siglip_pipeline.siglip.identity import spec_of
from siglip_pipeline.siglip.loaded import SiglipModel, Tower
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.quiet import quiet_transformers
from siglip_pipeline.siglip.recipe import read_recipe
from siglip_pipeline.siglip.tensors import read_tensors
from siglip_pipeline.text.in_words import counted

__all__ = ["SiglipModel", "Tower", "get_model", "load_model", "release_model"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Slot:
    """The key under which a loaded model is reused."""

    name: str
    revision: str | None
    max_num_patches: int | None
    device: str
    dtype: torch.dtype


_VOCABULARY = "text_model.embeddings.token_embedding.weight"

_lock = threading.RLock()
_loaded: dict[_Slot, SiglipModel] = {}
_leases: list[CardLease] = []
"""The lease of this process, if it has one."""


def get_model(options: ModelOptions, *, tower: Tower = "both") -> SiglipModel:
    """Return the configured model; the first call in this process loads it.

    One model is held per process: a call for another one, or for another device or dtype, releases
    the first. A model with both towers serves calls for one tower. Thread-safe.

    If ``SIGLIP_DEVICE`` is ``auto`` or ``cuda`` and there are several cards, the process takes the
    one that the fewest processes use, and keeps it. Where a lease cannot be written, it takes the
    first.

    Raises:
        ModelError: the model cannot be found, is not a SigLIP model, or its weights are damaged;
            see :class:`ModelNotFoundError`, :class:`UnsupportedModelError`,
            :class:`CorruptWeightsError`.
        DeviceUnavailableError: ``SIGLIP_DEVICE`` names a device that does not exist.
    """
    with _lock:
        device = _device_for(options)
        slot = _Slot(
            options.name,
            options.revision,
            options.max_num_patches,
            device,
            devices.choose_dtype(options.dtype, device),
        )
        for other in [held for held in _loaded if held != slot]:
            _log.info("releasing %r: another model was requested", _loaded[other])
            del _loaded[other]
            _give_back_memory()
        held = _loaded.get(slot)
        if held is None:
            _loaded[slot] = load_model(options, slot.device, slot.dtype, tower=tower)
        elif held.tower not in ("both", tower):
            # The tower that is there stays: it is neither read again, nor there twice.
            missing: Tower = "text" if held.tower == "image" else "image"
            loaded = load_model(options, slot.device, slot.dtype, tower=missing)
            if loaded.spec != held.spec:  # the files were changed meanwhile
                _loaded[slot] = load_model(options, slot.device, slot.dtype)
            else:
                held.add_tower(loaded)
        return _loaded[slot]


def release_model() -> None:
    """Release the loaded model, its memory and its card. The next :func:`get_model` loads again."""
    with _lock:
        if _loaded:
            _loaded.clear()
            _give_back_memory()
        while _leases:
            _leases.pop().release()


def _give_back_memory() -> None:
    # Errors that transformers keeps from its imports hold the frames of our loader, with the model.
    gc.collect()
    devices.give_back_memory()


def _device_for(options: ModelOptions) -> str:
    """Return the device for ``SIGLIP_DEVICE``; lease a card if any of several will do."""
    device = devices.choose_device(options.device)
    is_any_card = options.device in ("auto", "cuda") and device.startswith("cuda")
    if not is_any_card or options.card_leases is None or torch.cuda.device_count() == 1:
        return device
    if not _leases:
        try:
            _leases.append(lease := CardLease(devices.card_names(), options.card_leases))
        except OSError as error:  # a folder that can only be read
            _tell_of_no_lease(device, str(error))
            return device
        shared = (
            f", shared with {counted(lease.others, 'other process', 'other processes')}"
            if lease.others
            else ""
        )
        _log.info("this process uses cuda:%d%s", lease.card, shared)
    return f"cuda:{_leases[0].card}"


@cache  # a search asks for the model, too
def _tell_of_no_lease(device: str, reason: str) -> None:
    _log.warning("this process uses %s, as others may: no lease (%s)", device, reason)


def load_model(
    options: ModelOptions, device: str, dtype: torch.dtype, *, tower: Tower = "both"
) -> SiglipModel:
    """Load without the process-wide cache; :func:`get_model` is the usual way.

    Raises:
        ModelError: as :func:`get_model`.
    """
    checkpoint = open_checkpoint(options)
    recipe = read_recipe(checkpoint, max_num_patches=options.max_num_patches)
    # The weights are not frozen: without grad, torch's matmul copies those of the pooling head once
    # per patch, which took half of a forward pass. inference_mode records nothing anyway.
    network = _load_network(checkpoint, tower, dtype, device).to(device).eval()
    model = SiglipModel(
        spec=spec_of(checkpoint, recipe, cache=options.fingerprints),
        recipe=recipe,
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
        tower=tower,
        text=network.text_model if tower == "both" else network if tower == "text" else None,
        vision=network.vision_model if tower == "both" else network if tower == "image" else None,
    )
    _log.info("loaded %r on %s", model, devices.device_name(device))
    return model


def _load_network(checkpoint: Checkpoint, tower: Tower, dtype: torch.dtype, device: str) -> Any:
    import transformers  # takes seconds: imported only to load weights

    prefix = {"siglip": "Siglip", "siglip2": "Siglip2"}[checkpoint.family]
    model_class = {"both": "Model", "text": "TextModel", "image": "VisionModel"}[tower]
    kind = getattr(transformers, prefix + model_class)
    beginning = {"both": "", "text": "text_model.", "image": "vision_model."}[tower]
    tensors = read_tensors(
        checkpoint.weights,
        checkpoint.name,
        beginning=beginning,
        dtype=dtype,
        as_stored=_VOCABULARY if tower == "text" and device == "cpu" else None,
    )
    vocabulary = tensors.get(_VOCABULARY)
    if vocabulary is not None and vocabulary.dtype is not dtype:
        # Takes no memory, and stands in until transformers has converted what is not of its type.
        tensors[_VOCABULARY] = torch.zeros((), dtype=dtype).expand_as(vocabulary)
    try:
        with quiet_transformers():
            network, info = kind.from_pretrained(
                None,
                config=kind.config_class.from_pretrained(checkpoint.folder, local_files_only=True),
                state_dict=tensors,
                dtype=dtype,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise
        raise CorruptWeightsError(
            f"{checkpoint.name!r}: its weights cannot be loaded ({error}). Download them again, or "
            "check that config.json belongs to them"
        ) from error
    _check_complete(checkpoint, info)
    if vocabulary is not None and vocabulary.dtype is not dtype:
        _convert_rows_when_used(network.get_input_embeddings(), vocabulary, dtype)
    return network


def _check_complete(checkpoint: Checkpoint, info: Mapping[str, Any]) -> None:
    """Refuse what transformers fills with random numbers: weights that are missing or do not fit.

    Raises:
        CorruptWeightsError: names the first ones.
    """
    lacking = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if lacking:
        raise CorruptWeightsError(
            f"{checkpoint.name!r}: {len(lacking)} of its weights are missing or of another shape "
            f"({', '.join(lacking[:3])}…): config.json does not belong to them"
        )


def _convert_rows_when_used(
    embedding: torch.nn.Module, vocabulary: torch.Tensor, dtype: torch.dtype
) -> None:
    """Give a mapped vocabulary to the text tower; of its 256,000 rows few are ever read."""
    embedding.weight = torch.nn.Parameter(vocabulary, requires_grad=False)
    embedding.register_forward_hook(lambda _module, _ids, rows: rows.to(dtype))
