"""The sabotages fit the code as it is; `make test-sabotage` applies them."""

import ast
import shutil
from pathlib import Path

import pytest

from siglip_pipeline_tests.sabotage.sabotages import ROOT, Sabotage, is_test, read_sabotages

SABOTAGES = read_sabotages()


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=[s.breaks for s in SABOTAGES])
def test_each_applies_once_and_names_a_test(sabotage: Sabotage, tmp_path: Path) -> None:
    (tmp_path / sabotage.file).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / sabotage.file, tmp_path / sabotage.file)
    before = sabotage.apply(tmp_path)
    after = (tmp_path / sabotage.file).read_text()
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before)), "nothing is broken"
    assert is_test(sabotage.test)


def test_there_are_enough_and_no_two_are_alike() -> None:
    assert len(SABOTAGES) >= 60
    assert len({s.breaks for s in SABOTAGES}) == len(SABOTAGES)


def test_one_that_does_not_fit_any_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    sabotage = Sabotage(breaks="x", file="a.py", find="y", replace="z", test="")
    with pytest.raises(ValueError, match=r"'x': its text is 0 times in a\.py, must be once"):
        sabotage.apply(tmp_path)
    assert not is_test("siglip_pipeline_tests/test_docs.py::test_that_is_not_there")
