"""The checks of quality in Dagster: there if the settings ask for them, and run by the assets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from siglip_pipeline.store.database import Database
from siglip_pipeline.store.query_log import QueryLog
from siglip_pipeline_tests.defs.embedded_alike import embed_alike

# The specs of assets are read once, when they are imported.
RUN = """
import json
import dagster as dg
from siglip_pipeline.definitions import defs
from siglip_pipeline.defs.assets import similarity_index
from siglip_pipeline.defs.reconciliation import reconciliation

instance, found = dg.DagsterInstance.ephemeral(), []
for _ in range(2):
    done = dg.materialize(
        [similarity_index, reconciliation], resources=defs.resources, instance=instance
    )
    found.append({
        check.check_name: [check.passed, {n: v.value for n, v in check.metadata.items()
                                          if n in ("nDCG@10", "best_so_far", "queries")}]
        for check in done.get_asset_check_evaluations()
    })
history = done.get_asset_check_evaluations()
rows = next(c for c in history if c.check_name == "retrieval_quality").metadata["history"].records
print(json.dumps([found, len(rows)]))
"""


@pytest.mark.parametrize("wanted", [True, False])
def test_the_assets_run_the_checks_that_settings_ask_for(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: bool
) -> None:
    embed_alike(database, monkeypatch, tmp_path, ["a.mp4", "b.mp4"])
    (tmp_path / "uploads").mkdir()
    judged = tmp_path / "judged.jsonl"
    judged.write_text('{"query": "a dog", "relevant": [{"video": "a.mp4"}]}\n')
    monkeypatch.setenv("SIGLIP_UPLOADS", str(tmp_path / "uploads"))
    monkeypatch.setenv("SIGLIP_INDEX_MIN_RECALL", "0")
    monkeypatch.setenv("SIGLIP_INDEX_RECALL_QUERIES", "4")
    if wanted:
        monkeypatch.setenv("SIGLIP_JUDGED_QUERIES", str(judged))
        monkeypatch.setenv("SIGLIP_QUERY_LOG", "on")
    QueryLog(database).record("a cat")
    code = RUN if wanted else RUN.partition("history = ")[0] + "print(json.dumps([found, 0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (first, second), earlier = json.loads(done.stdout.splitlines()[-1])
    names = {"retrieval_quality", "recall_of_asked_queries"}
    if not wanted:
        assert not names & {*first}
        return
    assert names <= {*first}
    passed, metadata = second["retrieval_quality"]
    assert passed
    assert metadata["nDCG@10"] == metadata["best_so_far"] > 0
    assert earlier == 1, "the one before it"
    assert second["recall_of_asked_queries"] == [True, {"queries": 1}]
