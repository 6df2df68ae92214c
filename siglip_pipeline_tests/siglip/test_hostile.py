"""Malicious model folders are refused with the reason, and nothing in them is executed."""

import contextlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from siglip_pipeline.errors import CorruptWeightsError, ModelError, UnsupportedModelError
from siglip_pipeline.siglip.checkpoint import open_checkpoint
from siglip_pipeline.siglip.model import load_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.recipe import read_recipe
from siglip_pipeline_tests.siglip.checkpoints import Kind, edit_json

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(folders: Callable[[Kind], Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders("siglip2"), tmp_path / "model")


def options_of(model: Path) -> ModelOptions:
    return ModelOptions(
        name=str(model), fingerprints=model.parent / "home" / "fingerprints.json", device="cpu"
    )


def load(model: Path) -> None:
    load_model(options_of(model), "cpu", torch.float32).tokenize(["a cat"])


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def test_pickles_are_never_opened(model: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(proof))
    names = ("pytorch_model.bin", "model.pt", "tokenizer.pkl", "vocab.pkl", "training_args.bin")
    for name in names:
        (model / name).write_bytes(bomb)
    load(model)
    assert not proof.exists()
    pickle.loads(bomb)
    proof.rmdir()  # it would have worked

    # In the place of what is read.
    for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json"):
        (model / name).write_bytes(bomb)
        with pytest.raises(UnsupportedModelError, match="tokenizer cannot be loaded"):
            load(model)
    (model / "model.safetensors").write_bytes(bomb)
    with pytest.raises(CorruptWeightsError, match="not safetensors"):
        load(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(CorruptWeightsError, match="pickles are never loaded"):
        load(model)
    assert not proof.exists()


def test_code_in_every_place_that_may_name_it_is_not_run(model: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    evil = f"import os\nos.mkdir({str(proof)!r})\nclass M: ...\n"
    for name in ("evil.py", "modeling_siglip.py", "tokenization_siglip.py", "__init__.py"):
        (model / name).write_text(evil)
    auto_map = {f"Auto{part}": "evil.M" for part in ("Config", "Model", "Tokenizer", "Processor")}
    edit_json(model / "config.json", auto_map=auto_map, custom_pipelines={"x": {"impl": "evil.M"}})
    tokenizer_class = "../evil.M"
    edit_json(model / "tokenizer_config.json", auto_map=auto_map, tokenizer_class=tokenizer_class)
    with contextlib.suppress(UnsupportedModelError):  # or it is passed over
        load(model)
    assert not proof.exists()


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/../../outside.safetensors",
        "..",
        "model.bin",
        "a\\b.safetensors",
        ".hidden.safetensors",
        7,
        ["model.safetensors"],
        {"a": 1},
    ],
)
def test_an_index_leads_nowhere_else(model: Path, shard: object) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    (model / "model.safetensors").unlink()
    (model / INDEX).write_text(json.dumps({"weight_map": {"logit_scale": shard}}))
    with pytest.raises(CorruptWeightsError, match="only names of safetensors files"):
        open_checkpoint(options_of(model))


@pytest.mark.parametrize("index", ["[]", '{"weight_map": []}', '{"weight_map": "x"}', "{}"])
def test_an_index_that_is_none(model: Path, index: str) -> None:
    (model / "model.safetensors").unlink()
    (model / INDEX).write_text(index)
    with pytest.raises(ModelError):
        open_checkpoint(options_of(model))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"]
)
def test_links_out_of_the_folder_are_not_followed(model: Path, name: str) -> None:
    outside = model.parent / "outside"
    if (model / name).exists():
        (model / name).rename(outside)
    else:
        outside.write_text("{}")
    (model / name).symlink_to(outside)
    with pytest.raises(UnsupportedModelError, match="leads out of the folder"):
        open_checkpoint(options_of(model))


def test_the_links_of_the_hubs_cache_are(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    assert open_checkpoint(options_of(snapshot)).family == "siglip"


def header(model: Path, text: bytes, *, length: int | None = None, sparse: int = 0) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.truncate(8 + len(text) + sparse)


ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": %s}'


@pytest.mark.parametrize(
    ("text", "length", "sparse"),
    [
        (b"{}", 2**63, 0),
        (b"{}", 50 * 2**30, 60 * 2**30),  # all of it would be read as JSON
        (b"", 0, 0),
        (b"[" * 100_000, None, 0),
        (b"[]", None, 0),
        (b'{"logit_scale": 1}', None, 0),
        (b'{"logit_scale": {"data_offsets": [0, 4]}}', None, 4),
        (b'{"logit_scale": %s}' % (ENTRY % "[0, 1e400]").encode(), None, 4),
        (b'{"logit_scale": %s}' % (ENTRY % "[-4, 4]").encode(), None, 4),
        (b'{"logit_scale": %s}' % (ENTRY % "[4, 0]").encode(), None, 0),
        (b'{"logit_scale": %s}' % (ENTRY % "[0, 64000000000]").encode(), None, 64_000_000_000),
        (b"\xff\xfe{}", None, 0),
    ],
)
def test_headers_that_lie(model: Path, text: bytes, length: int | None, sparse: int) -> None:
    header(model, text, length=length, sparse=sparse)
    with pytest.raises(ModelError):
        open_checkpoint(options_of(model))


@pytest.mark.parametrize(
    ("tower", "key", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "hidden_size", 2**40),
        ("vision_config", "image_size", -1),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "max_position_embeddings", 0),
        ("text_config", "hidden_size", "64; rm -rf"),
        ("text_config", "num_attention_heads", [1]),
    ],
)
def test_a_config_asks_for_no_more_than_models_have(
    model: Path, tower: str, key: str, value: object
) -> None:
    config = json.loads((model / "config.json").read_text())
    edit_json(model / "config.json", **{tower: {**config[tower], key: value}})
    with pytest.raises(UnsupportedModelError, match=rf"{tower}\.{key}=.*allowed are whole numbers"):
        open_checkpoint(options_of(model))


@pytest.mark.parametrize(
    "content", ["[" * 200_000, "null", "[]", '{"model_type": {}}', "\ud800", '{"vision_config": 1}']
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_of_every_kind(model: Path, name: str, content: str) -> None:
    (model / "processor_config.json").unlink(missing_ok=True)
    (model / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UnsupportedModelError):
        read_recipe(open_checkpoint(options_of(model)))


def test_a_file_of_gigabytes_is_not_read_as_json(model: Path) -> None:
    with (model / "config.json").open("wb") as file:
        file.truncate(30 * 2**30)
    with pytest.raises(UnsupportedModelError, match="bytes; at most"):
        open_checkpoint(options_of(model))


@pytest.mark.parametrize(
    ("key", "value"),
    [("resample", [3]), ("rescale_factor", "x"), ("image_mean", {}), ("image_std", [0, 0, 0])],
)
def test_an_image_processor_of_nonsense(model: Path, key: str, value: object) -> None:
    name = "processor_config.json"
    if (model / name).is_file():
        inside = json.loads((model / name).read_text())["image_processor"]
        edit_json(model / name, image_processor={**inside, key: value})
    else:
        edit_json(model / "preprocessor_config.json", **{key: value})
    with pytest.raises(UnsupportedModelError):
        read_recipe(open_checkpoint(options_of(model)))


def test_a_tokenizer_of_another_model_is_refused_where_it_is_used(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    text = {**config["text_config"], "vocab_size": 3}
    edit_json(model / "config.json", text_config=text)
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = tensors[name][:3].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"tokenizer gives token \d+.*knows 3"):
        load(model)
