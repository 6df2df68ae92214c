"""The training's command: a few steps, from rendering to a folder that loads."""

from pathlib import Path

import pytest

from tools.demo_model.evaluate import DemoModel
from tools.demo_model.train import main


@pytest.mark.slow
def test_a_few_steps_write_a_model_that_loads_and_embeds(tmp_path: Path) -> None:
    steps = ["--pictures", "128", "--object-steps", "2", "--pair-steps", "2", "--workers", "1"]
    main(["--output", str(tmp_path), *steps])
    assert DemoModel(tmp_path).embed_texts(["a red circle", "a blue star"]).shape == (2, 128)
