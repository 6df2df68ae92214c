# mypy: ignore-errors
"""SigLIP for Pixeltable, called as its own `clip` calls a model; part of `pixeltable_script.py`.

Pixeltable takes functions only from modules; the model is that of SIGLIP_MODEL_NAME.
"""

import os
from functools import cache
from typing import Any

import numpy as np
import pixeltable as pxt
import torch
import transformers
from PIL.Image import Image
from pixeltable.func import Batch

MODEL = os.environ["SIGLIP_MODEL_NAME"]
DIM = transformers.AutoConfig.from_pretrained(MODEL).vision_config.hidden_size


@cache
def loaded() -> tuple[Any, Any]:
    model = transformers.AutoModel.from_pretrained(MODEL).eval()
    return model, transformers.AutoProcessor.from_pretrained(MODEL)


@pxt.udf(batch_size=32)
def siglip_image(image: Batch[Image]) -> Batch[pxt.Array[(DIM,), pxt.Float]]:
    model, processor = loaded()
    with torch.no_grad():
        inputs = processor(images=[each.convert("RGB") for each in image], return_tensors="pt")
        output_ND = model.get_image_features(**inputs).pooler_output
        return list(torch.nn.functional.normalize(output_ND, dim=-1).numpy().astype(np.float32))
