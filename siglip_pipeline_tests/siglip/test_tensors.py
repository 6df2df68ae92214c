"""Weights in the wanted number format: the same numbers, and not in memory twice."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from siglip_pipeline.errors import CorruptWeightsError
from siglip_pipeline.siglip import tensors
from siglip_pipeline.siglip.model import Tower, get_model, release_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.tensors import read_tensors
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline_tests.siglip.checkpoints import make_checkpoint

TOWERS: tuple[Tower, ...] = ("text", "both")
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_tensors_are_converted_as_torch_does(
    stored: torch.dtype, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_PART", 5)
    written = {
        "text.a": torch.randn(3, 7).to(stored),
        "text.scalar": torch.tensor(1.5).to(stored),
        "text.empty": torch.empty(0, 4).to(stored),
        "vision.b": torch.randn(2).to(stored),
    }
    file = tmp_path / "model.safetensors"
    save_file(written, file)
    read = read_tensors((file,), "a model", beginning="text.", dtype=dtype)
    assert sorted(read) == ["text.a", "text.empty", "text.scalar"]
    for name, tensor in read.items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, written[name].to(dtype))


def test_a_tensor_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([1.0, 2.0])}, file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" "  # now the data begin at an odd place
    file.write_bytes((length + 1).to_bytes(8, "little") + header + content[8 + length :])
    read = read_tensors((file,), "a model", beginning="", dtype=torch.float32)
    assert read["a"].tolist() == [1.0, 2.0]


def test_numbers_that_no_checkpoint_of_siglip_has_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.tensor([1, 2])}, file)
    says = r"'a model': a in model\.safetensors is I64, allowed are F64, F32, F16, BF16"
    with pytest.raises(CorruptWeightsError, match=says):
        read_tensors((file,), "a model", beginning="", dtype=torch.float32)
    content = file.read_bytes().replace(b'"I64"', b'"F32"')
    file.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=r"has 16 bytes, which is not \[2\] of torch"):
        read_tensors((file,), "a model", beginning="", dtype=torch.float32)


GROWTH = """
import json, re, sys
from pathlib import Path
from siglip_pipeline.siglip.model import get_model, release_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
import transformers.models.siglip.modeling_siglip

def megabytes(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) / 1000

found = []
for folder, tower, dtype in json.loads(sys.argv[1]):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = megabytes("VmRSS")
    model = get_model(ModelOptions(name=folder, device="cpu", dtype=dtype), tower=tower)
    if folder == "words":
        extract_text_embeddings(["a cat"], model=model)
    elif dtype == "float32":  # mapped from the file: what counts is resident once it was used
        used = [model.text, model.vision] if tower == "both" else [model.text]
        sum(float(p.sum()) for module in used for p in module.parameters())
        del used
    found.append({"peak": megabytes("VmHWM") - before, "after": megabytes("VmRSS") - before})
    del model
    release_model()
print(json.dumps(found))
"""
Growth = dict[tuple[str, str], dict[str, float]]
LOADED = [
    ("words", "text", "bfloat16"),
    ("wide", "text", "float32"),
    ("wide", "both", "float32"),
    ("wider", "image", "bfloat16"),
]
"""What a process loads in turn, in float32 as it is stored; what takes the most memory is last."""


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> Growth:
    """By folder and tower: how far a process grew at most and in the end, by what is stored.

    One process for all, which takes seconds to import what it needs.
    """
    folder = tmp_path_factory.mktemp("growth")
    make_checkpoint(folder / "words", text={"vocab_size": 256_000, "hidden_size": 128})
    for name, layers in (("wide", 2), ("wider", 4)):  # 50 and 100 MB; their text is next to nothing
        make_checkpoint(
            folder / name, hidden_size=32, intermediate_size=98_304, num_hidden_layers=layers
        )
    command = [sys.executable, "-c", GROWTH, json.dumps(LOADED)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stored = {path.name: (path / "model.safetensors").stat().st_size for path in folder.iterdir()}
    assert stored["wide"] > 50e6
    return {
        (name, tower): {which: value * 1e6 / stored[name] for which, value in grown.items()}
        for (name, tower, _), grown in zip(LOADED, json.loads(done.stdout), strict=True)
    }


def test_a_model_that_is_converted_is_not_in_memory_twice(growth: Growth) -> None:
    # Half as much in bfloat16, and a part in both; mapped and converted it took one and a half.
    assert 0.5 < growth["wider", "image"]["peak"] < 0.9


def test_of_a_vocabulary_only_the_rows_that_are_used_are_in_memory(growth: Growth) -> None:
    assert growth["words", "text"]["peak"] < 0.4


def test_the_text_tower_takes_less_memory_than_both(growth: Growth) -> None:
    assert growth["wide", "both"]["after"] > 0.9
    assert growth["wide", "text"]["after"] < 0.3


def test_rows_of_the_vocabulary_are_those_of_a_converted_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    options = ModelOptions(name=str(folder), device="cpu", dtype="bfloat16")
    found = {}
    for tower in TOWERS:
        release_model()
        model = get_model(options, tower=tower)
        found[tower] = extract_text_embeddings(["a cat", "two people"], model=model)
    release_model()
    np.testing.assert_array_equal(found["text"], found["both"])
