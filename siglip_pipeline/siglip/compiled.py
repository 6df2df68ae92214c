"""Compile the vision tower on a CPU, in the background, while batches run eagerly.

For long runs: compiling takes minutes of CPU, and the model gains a fifth where bfloat16 is fast.
Whatever fails is a note in the report, and batches go on eagerly.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import torch

from siglip_pipeline.siglip.forward import Encodes
from siglip_pipeline.siglip.preprocess import ModelInputs

_log = logging.getLogger(__name__)

WORTH_COMPILING_SECONDS: Final = 1800.0
"""With ``auto``, the expected rest of a run from which compiling pays."""
LEAST_COSINE: Final = 0.9999
"""Of compiled vectors to eager ones; vectors farther off would be of another ``model_key``."""

Compiler = Callable[[torch.nn.Module], Callable[..., Any]]


class CompiledForward:
    """Run eagerly until the tower is compiled, and whenever a batch has another size.

    Args:
        vision: the vision tower.
        compiler: compiles a module; what it returns compiles when it is first called.
    """

    def __init__(self, vision: torch.nn.Module, compiler: Compiler) -> None:
        self._vision = vision
        self._compiler = compiler
        self._lock = threading.Lock()
        self._size: int | None = None
        self._compiled: Callable[..., Any] | None = None
        self._failure: str | None = None
        self.thread: threading.Thread | None = None
        self.name = "eager"

    @property
    def notes(self) -> tuple[str, ...]:
        """Return why batches do not run compiled."""
        return () if self._failure is None else (self._failure,)

    def __call__(
        self, model: Encodes, inputs: ModelInputs, *, capacity: int | None
    ) -> torch.Tensor:
        """Return unit vectors."""
        compiled, count = self._compiled, len(inputs.arguments["pixel_values"])
        if compiled is not None and count == self._size:
            self.name = "compiled"
            return _vectors(compiled, inputs)
        vectors_ND = model.encode_images(inputs)
        if count == self._size:
            self._begin(inputs, vectors_ND)
        return vectors_ND

    def forget(self, *, above: int) -> None:
        """Run larger batches eagerly."""
        if self._size is not None and self._size > above:
            self._size = None

    def compile_for(self, size: int) -> None:
        """Compile when the next batch of this size comes; once for a model."""
        if self._size is None and self.thread is None:
            self._size = size

    def _begin(self, inputs: ModelInputs, vectors_ND: torch.Tensor) -> None:
        with self._lock:
            if self.thread is None:
                # Threads are part of what is compiled: as many as this worker has.
                arguments = (inputs, vectors_ND, torch.get_num_threads())
                self.thread = threading.Thread(
                    target=self._compile, args=arguments, name="compile-vision", daemon=True
                )
                self.thread.start()

    def _compile(self, inputs: ModelInputs, vectors_ND: torch.Tensor, threads: int) -> None:
        try:
            torch.set_num_threads(threads)
            compiled = self._compiler(self._vision)
            least = float((_vectors(compiled, inputs) * vectors_ND).sum(dim=1).min())
            if not least >= LEAST_COSINE:
                raise ValueError(f"its vectors have a cosine of {least:.5f} to eager ones")
        # A compiler is an acceleration; it may raise anything.
        except Exception as error:
            what = str(error).strip().partition("\n")[0]
            self._failure = f"not compiled ({type(error).__name__}: {what}): batches run eagerly"
            _log.warning("%s", self._failure)
            return
        # What would be compiled anew in the way of a batch runs eagerly instead.
        torch.compiler.set_stance("eager_on_recompile")
        self._compiled = compiled
        _log.info("the vision tower is compiled for batches of %d", len(vectors_ND))


def _vectors(compiled: Callable[..., Any], inputs: ModelInputs) -> torch.Tensor:
    with torch.inference_mode():
        pooled_ND = compiled(**inputs.arguments).pooler_output.float()
        return torch.nn.functional.normalize(pooled_ND, dim=-1, eps=0.0)


def inductor(vision: torch.nn.Module) -> Callable[..., Any]:
    """Return a module that becomes C++ with constant weights when it is first called."""
    torch.compiler.set_stance("default")
    return torch.compile(vision, dynamic=False, options={"freezing": True})
