"""Texts without torch and transformers, against both: the same tokens, the same vectors."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as _transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.errors import CorruptWeightsError
from siglip_pipeline.siglip.checkpoint import open_checkpoint
from siglip_pipeline.siglip.model import load_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.recipe import read_recipe
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline.siglip.text_tower import NumpyTextModel, open_text_model
from siglip_pipeline.siglip.tokenizer import TextTokenizer
from siglip_pipeline_tests.siglip.checkpoints import GIANT_TEXT, Kind, edit_json, make_checkpoint
from siglip_pipeline_tests.siglip.conftest import Make
from siglip_pipeline_tests.siglip.reference import TEXTS, Reference, cosines

transformers: Any = _transformers

LEAST = 0.999999
ODD_TEXTS = [*TEXTS, "  two  spaces ", "<eos> or <mask>", "line\n\nline", "☃ 🂡", "fox " * 62]


def opened(options: ModelOptions) -> NumpyTextModel:
    model = open_text_model(options)
    assert model is not None
    return model


@pytest.mark.parametrize("kind", ["siglip2", "siglip1", "naflex"])
def test_vectors_are_those_of_transformers(kind: Kind, options_for: Make) -> None:
    options = options_for(kind)
    ours = extract_text_embeddings(TEXTS, model=opened(options))
    theirs = Reference(Path(options.name)).texts([text.lower() for text in TEXTS])
    assert ours.dtype == np.float32
    assert cosines(ours, theirs).min() >= LEAST
    # The bar means something: other texts are far below it.
    assert cosines(theirs[:-1], theirs[1:]).max() < LEAST


@pytest.mark.parametrize(
    "text",
    [
        {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 16},
        {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 5},
        {"hidden_size": 32, "num_attention_heads": 4, "layer_norm_eps": 1e-2},
        {"hidden_size": 24, "max_position_embeddings": 16},
        GIANT_TEXT | {"projection_size": 32},
    ],
)
def test_vectors_of_random_configs_are_those_of_transformers(
    text: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model", seed=len(text), text=text)
    model = opened(ModelOptions(name=str(folder)))
    tokens = model.tokenize(TEXTS)
    network = transformers.SiglipModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = network.get_text_features(torch.from_numpy(tokens.ids_NT)).pooler_output
    theirs = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    assert cosines(model.encode_texts(tokens.ids_NT), theirs).min() >= LEAST


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    halved = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(halved, file, metadata={"format": "pt"})
    ours = extract_text_embeddings(TEXTS, model=opened(ModelOptions(name=str(folder))))
    reference = Reference(folder)
    reference.model = reference.model.float()
    assert cosines(ours, reference.texts([text.lower() for text in TEXTS])).min() >= LEAST


def test_the_demos_model_is_read() -> None:
    model = opened(ModelOptions(name=str(MODEL_FOLDER)))
    texts = ["a red circle on a blue ground", "a green star"]
    theirs = Reference(MODEL_FOLDER).texts(texts)
    assert cosines(extract_text_embeddings(texts, model=model), theirs).min() >= LEAST


def test_shards_are_read(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    whole = extract_text_embeddings(TEXTS, model=opened(ModelOptions(name=str(folder))))
    sharded = transformers.SiglipModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    sharded.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    ours = extract_text_embeddings(TEXTS, model=opened(ModelOptions(name=str(folder))))
    np.testing.assert_array_equal(ours, whole)


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("how", ["activation", "missing", "shape", "integers"])
def test_an_unusual_tower_is_left_to_torch(how: str, tmp_path: Path) -> None:
    """Transformers knows more activations, and the loader says what is wrong with weights."""
    bias = "text_model.encoder.layers.1.mlp.fc1.bias"
    text = {"hidden_act": "gelu"} if how == "activation" else {}
    folder = make_checkpoint(tmp_path / "model", text=text)
    if how == "missing":
        damaged(folder, lambda tensors: tensors.__delitem__(bias))
    elif how == "shape":
        damaged(folder, lambda tensors: tensors.update({bias: torch.zeros(7)}))
    elif how == "integers":
        damaged(folder, lambda tensors: tensors.update({bias: tensors[bias].int()}))
    assert open_text_model(ModelOptions(name=str(folder))) is None


@pytest.mark.parametrize("shape", [None, [-8, -4], [{}]])
def test_a_damaged_header_is_said(shape: list[Any] | None, tmp_path: Path) -> None:
    """By the loader, if not at once: not as an error of numpy."""
    folder = make_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    damaged = header["text_model.encoder.layers.0.mlp.fc1.bias"]
    if shape is None:
        damaged["data_offsets"][1] -= 1  # no whole number of floats
    else:
        damaged["shape"] = shape
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :])
    options = ModelOptions(name=str(folder))
    with pytest.raises(CorruptWeightsError):
        assert open_text_model(options) or load_model(options, "cpu", torch.float32)


# -- tokens ------------------------------------------------------------------------------------

HUB = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
"""As in the SigLIP 2 checkpoints of the hub."""

CONFIGS: dict[str, dict[str, Any]] = {
    "as saved": {},
    "hub": HUB,
    "hub, fast": HUB | {"tokenizer_class": "GemmaTokenizerFast"},
    "hub, with a beginning": HUB | {"add_bos_token": True},
    "no end": HUB | {"add_eos_token": False},
    "left": {"padding_side": "left", "truncation_side": "left"},
    "hub, left": HUB | {"padding_side": "left", "truncation_side": "left"},
    "no side": {"padding_side": None},
    "hub, no side": HUB | {"padding_side": None},
    "a plain class with an end": {"add_bos_token": True, "add_eos_token": True},
    "another class": {"tokenizer_class": "LlamaTokenizer"},
    "another padding": {"pad_token": "<mask>"},
    "a token that the file lacks": {"mask_token": "<lacking>"},
    "an extra token": {"extra_special_tokens": ["fox"]},
}
READ_OTHERWISE_BEFORE = {("naflex", "no side"), ("naflex", "another class")}
"""No checkpoint of the hub is so. Token ids are the same under every transformers: these."""
TESTED = Version("5.23")
LEGACY: dict[str, dict[str, Any]] = {
    "special_tokens_map.json": {"mask_token": "fox"},
    "added_tokens.json": {"fox": 690},
}


@pytest.mark.parametrize("family", ["siglip2", "naflex"])
@pytest.mark.parametrize("config", [*CONFIGS, *LEGACY])
def test_tokens_are_those_of_transformers(
    config: str, family: Kind, folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    if (family, config) in READ_OTHERWISE_BEFORE and Version(transformers.__version__) < TESTED:
        pytest.skip(f"transformers {transformers.__version__} reads this config otherwise")
    folder = tmp_path / "model"
    shutil.copytree(folders(family), folder)
    edit_json(folder / "tokenizer_config.json", **CONFIGS.get(config, HUB))
    if config in LEGACY:
        (folder / config).write_text(json.dumps(LEGACY[config]))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", text_config=text | {"vocab_size": 700})  # room for more
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(
        [text.lower() for text in ODD_TEXTS],
        padding="max_length",
        max_length=64,
        truncation=True,
        return_tensors="np",
    )["input_ids"]
    checkpoint = open_checkpoint(ModelOptions(name=str(folder)))
    tokens = TextTokenizer(checkpoint, read_recipe(checkpoint)).tokenize(ODD_TEXTS)
    np.testing.assert_array_equal(tokens.ids_NT, theirs)
    assert (np.array(tokens.cut_N) > 0).tolist() == [len(text) > 200 for text in ODD_TEXTS]


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
@pytest.mark.parametrize("config", ["as saved", "hub"])
def test_neither_torch_nor_transformers_is_loaded(
    kind: Kind, config: str, options_for: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(options_for(kind).name, folder)
    edit_json(folder / "tokenizer_config.json", **CONFIGS[config])
    options = replace(options_for(kind), name=str(folder))
    code = (
        "import sys; from pathlib import Path; "
        "from siglip_pipeline.siglip.model_options import ModelOptions; "
        "from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings; "
        "from siglip_pipeline.siglip.text_tower import open_text_model; "
        f"model = open_text_model(ModelOptions(name={options.name!r})); "
        "assert extract_text_embeddings(['a cat'], model=model).shape == (1, 32); "
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
