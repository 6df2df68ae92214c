"""The loaded model: lazily, once per process, released on request.

``get_model`` is what everybody calls. The first call loads (seconds); later calls return the same
object. A process that only searches asks for the text tower and never reads the vision weights.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from siglip_pipeline.errors import CorruptWeightsError, ModelError, UnsupportedModelError
from siglip_pipeline.records import ModelSpec
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip import device as devices
from siglip_pipeline.siglip.checkpoint import Checkpoint, open_checkpoint
from siglip_pipeline.siglip.identity import fingerprint_cache, spec_of
from siglip_pipeline.siglip.preprocess import ImageBatch, ModelInputs, model_inputs
from siglip_pipeline.siglip.recipe import Recipe, read_recipe

Tower = Literal["both", "text", "image"]

_log = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """Texts as the text tower takes them."""

    ids_NT: torch.Tensor
    """int64 [N, T] with T = ``recipe.text_length``."""
    cut_N: list[int]
    """How many tokens of each text did not fit."""


class SiglipModel:
    """A loaded SigLIP or SigLIP 2 model, whole or one tower of it.

    Attributes:
        spec: identity; vectors of models with equal ``spec.key`` may be compared.
        recipe: how pictures and texts are prepared.
        device: ``cuda:N``, ``mps`` or ``cpu``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; vectors always come out in float32.
        tower: what is loaded.
        settled_batch_size: found by the embedding engine and kept for its next run.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        recipe: Recipe,
        checkpoint: Checkpoint,
        device: str,
        dtype: torch.dtype,
        tower: Tower,
        text: torch.nn.Module | None,
        vision: torch.nn.Module | None,
    ) -> None:
        self.spec = spec
        self.recipe = recipe
        self.device = device
        self.dtype = str(dtype).removeprefix("torch.")
        self.tower = tower
        self.torch_dtype = dtype
        self.torch_device = torch.device(device)
        self.settled_batch_size: int | None = None
        self._checkpoint = checkpoint
        self._text = text
        self._vision = vision
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()

    def __repr__(self) -> str:
        return (
            f"SiglipModel({self.spec.name!r}, key={self.spec.key!r}, tower={self.tower!r}, "
            f"device={self.device!r}, dtype={self.dtype!r})"
        )

    @property
    def vision(self) -> torch.nn.Module:
        """The vision tower.

        Raises:
            ModelError: only the text tower is loaded.
        """
        if self._vision is None:
            raise ModelError("this model was loaded with tower='text': it cannot embed pictures")
        return self._vision

    @property
    def text(self) -> torch.nn.Module:
        """The text tower.

        Raises:
            ModelError: only the vision tower is loaded.
        """
        if self._text is None:
            raise ModelError("this model was loaded with tower='image': it cannot embed texts")
        return self._text

    def inputs(self, batch: ImageBatch) -> ModelInputs:
        """A batch that is on this model's device, as the vision tower takes it."""
        with torch.inference_mode():
            return model_inputs(batch, self.recipe, self.torch_dtype)

    def encode_images(self, inputs: ModelInputs) -> torch.Tensor:
        """Unit vectors [N, D] in float32, on the device. A row may be NaN: callers must look."""
        arguments = dict(inputs.arguments)
        if self.recipe.family == "siglip2":
            # No padding in the batch: no mask, and attention takes its fast path.
            arguments.setdefault("pixel_attention_mask", None)  # type: ignore[arg-type]
        with torch.inference_mode():
            return _unit(self.vision(**arguments).pooler_output)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts as token ids, prepared as SigLIP was trained.

        Lowercased here because the tokenizers of ``siglip`` checkpoints with a Gemma vocabulary do
        not; padded to the full length because the tower pools the last position, whatever it holds.
        """
        lowered = [text.lower() for text in texts]
        length = self.recipe.text_length
        # A fast tokenizer keeps its padding and truncation in shared state.
        with self._tokenizer_lock:
            tokenizer = self._load_tokenizer()
            whole = tokenizer(lowered, padding=False, truncation=False, verbose=False)["input_ids"]
            ids = tokenizer(
                lowered,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )["input_ids"]
        return Tokens(ids, [max(0, len(tokens) - length) for tokens in whole])

    def encode_texts(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """Unit vectors [N, D] in float32, on the device. No attention mask: training had none."""
        with torch.inference_mode():
            return _unit(self.text(input_ids=ids_NT.to(self.torch_device)).pooler_output)

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                with _quiet_transformers():
                    self._tokenizer = AutoTokenizer.from_pretrained(
                        self._checkpoint.folder, local_files_only=True, trust_remote_code=False
                    )
            except (OSError, ValueError, ImportError, KeyError) as error:
                raise UnsupportedModelError(
                    f"{self.spec.name!r}: its tokenizer cannot be loaded ({error}). Needed are "
                    "tokenizer.json or spiece.model beside config.json"
                ) from error
        return self._tokenizer


def _unit(vectors_ND: torch.Tensor) -> torch.Tensor:
    # Normalised in float32: in bfloat16 the length alone would be off by half a percent.
    vectors_ND = vectors_ND.float()
    return torch.nn.functional.normalize(vectors_ND, dim=-1, eps=0.0)


@dataclass(frozen=True)
class _Slot:
    """What makes a loaded model reusable."""

    name: str
    revision: str | None
    max_num_patches: int | None
    device: str
    dtype: torch.dtype


_lock = threading.RLock()
_loaded: dict[_Slot, SiglipModel] = {}


def get_model(settings: Settings, *, tower: Tower = "both") -> SiglipModel:
    """The configured model; loaded by the first call in this process, the same object afterwards.

    One model is held per process: asking for another one, or for another device or dtype, lets go
    of the first. A model with both towers also answers for one. Thread-safe.

    Raises:
        ModelError: the model cannot be found, is not a SigLIP model, or its weights are damaged;
            see :class:`ModelNotFoundError`, :class:`UnsupportedModelError`,
            :class:`CorruptWeightsError`.
        DeviceUnavailableError: ``SIGLIP_DEVICE`` names a device that is not there.
    """
    return _get(settings, [devices.choose_device(settings.device)], tower)[0]


def get_models(settings: Settings, *, tower: Tower = "image") -> tuple[SiglipModel, ...]:
    """The configured model on every device that the embedding engine should use.

    One per CUDA device when ``SIGLIP_DEVICE`` is ``auto`` or ``cuda`` and there are several; else
    the one of :func:`get_model`.

    Raises:
        ModelError: as :func:`get_model`.
    """
    names = [devices.choose_device(settings.device)]
    if settings.device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return _get(settings, names, tower)


def release_model() -> None:
    """Let go of the loaded model and its memory. The next :func:`get_model` loads again."""
    with _lock:
        _loaded.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _get(settings: Settings, names: Sequence[str], tower: Tower) -> tuple[SiglipModel, ...]:
    with _lock:
        slots = [
            _Slot(
                settings.model_name,
                settings.model_revision,
                settings.max_num_patches,
                name,
                devices.choose_dtype(settings.dtype, name),
            )
            for name in names
        ]
        for other in [slot for slot in _loaded if slot not in slots]:
            _log.info("letting go of %r: another model was asked for", _loaded[other])
            del _loaded[other]
        for slot in slots:
            held = _loaded.get(slot)
            if held is None or held.tower not in ("both", tower):
                # Not two copies at once: the new one has all that the old one had.
                _loaded.pop(slot, None)
                wanted: Tower = tower if held is None else "both"
                _loaded[slot] = load_model(settings, slot.device, slot.dtype, tower=wanted)
        return tuple(_loaded[slot] for slot in slots)


def load_model(
    settings: Settings, device: str, dtype: torch.dtype, *, tower: Tower = "both"
) -> SiglipModel:
    """Load without the process-wide cache; :func:`get_model` is the usual way.

    Raises:
        ModelError: as :func:`get_model`.
    """
    checkpoint = open_checkpoint(settings)
    recipe = read_recipe(checkpoint, max_num_patches=settings.max_num_patches)
    network = _load_network(checkpoint, tower, dtype).to(device).eval().requires_grad_(False)
    model = SiglipModel(
        spec=spec_of(checkpoint, recipe, cache=fingerprint_cache(settings)),
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


def _load_network(checkpoint: Checkpoint, tower: Tower, dtype: torch.dtype) -> Any:
    import transformers  # seconds: only when weights are really wanted

    prefix = {"siglip": "Siglip", "siglip2": "Siglip2"}[checkpoint.family]
    part = {"both": "Model", "text": "TextModel", "image": "VisionModel"}[tower]
    try:
        with _quiet_transformers():
            network, info = getattr(transformers, prefix + part).from_pretrained(
                checkpoint.folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise
        raise CorruptWeightsError(
            f"{checkpoint.name!r}: its weights cannot be loaded ({error}). Download them again, or "
            "check that config.json belongs to them"
        ) from error
    # transformers fills what is missing with random numbers and goes on.
    lacking = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if lacking:
        raise CorruptWeightsError(
            f"{checkpoint.name!r}: {len(lacking)} of its weights are missing or of another shape "
            f"({', '.join(lacking[:3])}…): config.json does not belong to them"
        )
    return network


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar, and no report about the tower that is left out on purpose."""
    from transformers.utils import logging as hf

    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity(logging.ERROR)
    hf.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf.set_verbosity(verbosity)
        if bars:
            hf.enable_progress_bar()  # type: ignore[no-untyped-call]
