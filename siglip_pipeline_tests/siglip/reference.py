"""What transformers itself makes of pictures and texts."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as _transformers
from numpy.typing import NDArray
from PIL import Image

transformers: Any = _transformers  # not typed enough to be checked

TEXTS = [
    "a cat",
    "Two People, walking in the RAIN!",
    "",
    "straße 例え mañana",
    "the quick brown fox " * 30,
    "x",
]


class Reference:
    """transformers' processor and model, called as its documentation says."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.naflex = self.model.config.model_type == "siglip2"
        # Where torchvision is installed, the processor resizes with it, and unlike Pillow.
        kind = "Siglip2ImageProcessorPil" if self.naflex else "SiglipImageProcessorPil"
        self.processor.image_processor = getattr(transformers, kind).from_pretrained(folder)

    def images(self, pictures: list[Image.Image], **options: Any) -> NDArray[np.float32]:
        if self.naflex:
            options.setdefault("max_num_patches", 64)
        inputs = self.processor.image_processor(pictures, return_tensors="pt", **options)
        with torch.no_grad():
            return unit(self.model.get_image_features(**inputs).pooler_output)

    def tokens(self, texts: list[str], **options: Any) -> Any:
        options = {"padding": "max_length", "max_length": 64, "truncation": True, **options}
        return self.processor.tokenizer(texts, return_tensors="pt", **options)

    def texts(self, texts: list[str], *, mask: bool = False, **options: Any) -> NDArray[np.float32]:
        tokens = self.tokens(texts, **options)
        arguments = {"input_ids": tokens["input_ids"]}
        if mask:
            arguments["attention_mask"] = tokens["attention_mask"]
        with torch.no_grad():
            return unit(self.model.get_text_features(**arguments).pooler_output)


def unit(vectors: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(torch.nn.functional.normalize(vectors.float(), dim=-1))


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((a * b).sum(axis=1))
