"""Tell text queries from picture queries by their vectors, which lie far apart.

The vectors of texts are far from those of all pictures (Liang et al., "Mind the Gap",
arXiv:2203.02053). So the plane halfway between the means of the two divides them, whatever a vector
was made from: a mix of both falls on the side that it is more like. Where the two overlap, the
plane has all known texts on one side, and some pictures are taken for texts.

Imports numpy where vectors are at hand: `status` reads index kinds without it.

Shapes: Q queries, D dimensions.
"""

from base64 import b64decode, b64encode
from functools import lru_cache
from typing import Literal

from siglip_pipeline.records import FloatArray

Modality = Literal["picture", "text"]

ROUNDING = 2e-3
"""More than half precision loses of a number below 2."""


def dividing_plane(pictures_QD: FloatArray, texts_QD: FloatArray) -> str:
    """Return the plane between them, as text that a generation's parameters hold."""
    import numpy as np

    picture_D, text_D = pictures_QD.mean(axis=0), texts_QD.mean(axis=0)
    # Rounded first, as the offset must fit what is stored.
    normal_D = (text_D - picture_D).astype("<f2").astype(np.float32)
    halfway = float(normal_D @ (text_D + picture_D)) / 2
    offset = min(halfway, float((texts_QD @ normal_D).min()) - ROUNDING)
    return b64encode(np.append(normal_D, offset).astype("<f2").tobytes()).decode()


def modality_of(plane: str, query_QD: FloatArray) -> Modality:
    """Return ``text`` if one of the vectors lies on the side of texts: they need more effort."""
    normal_D, offset = _decode(plane)
    return "text" if float((query_QD @ normal_D).max()) > offset else "picture"


@lru_cache(maxsize=16)
def _decode(plane: str) -> tuple[FloatArray, float]:
    import numpy as np

    values = np.frombuffer(b64decode(plane), "<f2").astype(np.float32)
    return values[:-1], float(values[-1])
