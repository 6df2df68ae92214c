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

grown = {}
for tower in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = megabytes("VmRSS")
    model = get_model(ModelOptions(name=tower, device="cpu", dtype="bfloat16"), tower=tower)
    if tower == "text":
        extract_text_embeddings(["a cat"], model=model)
    grown[tower] = megabytes("VmHWM") - before
    del model
    release_model()
print(json.dumps(grown))
"""


@pytest.fixture(scope="module")
def share_loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The growth of a process that loads a tower in bfloat16, by the size of the stored weights.

    One process for both, which takes seconds to import what it needs; the small growth first.
    """
    folder = tmp_path_factory.mktemp("growth")
    make_checkpoint(folder / "text", text={"vocab_size": 256_000, "hidden_size": 128})
    make_checkpoint(folder / "image", hidden_size=32, intermediate_size=98_304, num_hidden_layers=4)
    command = [sys.executable, "-c", GROWTH, "text", "image"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        tower: megabytes * 1e6 / (folder / tower / "model.safetensors").stat().st_size
        for tower, megabytes in json.loads(done.stdout).items()
    }


def test_a_model_that_is_converted_is_not_in_memory_twice(share_loaded: dict[str, float]) -> None:
    # Half as much in bfloat16, and a part in both; mapped and converted it took one and a half.
    assert 0.5 < share_loaded["image"] < 0.9


def test_of_a_vocabulary_only_the_rows_that_are_used_are_in_memory(
    share_loaded: dict[str, float],
) -> None:
    assert share_loaded["text"] < 0.4


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
