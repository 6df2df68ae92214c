"""Keep the vectors of texts that are embedded in every new home, such as those of the recall check.

They depend on the model and the texts alone, so they are kept per user, not per home. Imports no
torch: a process that finds them loads no model.
"""

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.records import FloatArray, ModelSpec
from siglip_pipeline.text.in_words import counted

_log = logging.getLogger(__name__)


def kept_text_vectors(
    texts: Sequence[str],
    spec: ModelSpec,
    *,
    folder: Path,
    embed: Callable[[Sequence[str]], FloatArray],
) -> FloatArray:
    """Return the vectors [N, D] of texts under a model; call ``embed`` only if none are kept.

    A file that cannot be read, or does not fit, is made anew; a folder that cannot be written to
    keeps nothing.
    """
    digest = hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()[:16]
    file = folder / "texts" / f"{spec.key}-{digest}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        vectors_ND: FloatArray = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        if vectors_ND.shape == (len(texts), spec.dim) and vectors_ND.dtype == np.float32:
            norms_N = np.linalg.norm(vectors_ND, axis=1)
            if np.allclose(norms_N, 1.0, atol=1e-3):  # false for NaN too
                return vectors_ND
    vectors_ND = embed(texts)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.save(stream, vectors_ND, allow_pickle=False)
    except OSError as error:
        _log.info("the vectors of %s are not kept: %s", counted(len(texts), "text"), error)
    return vectors_ND
