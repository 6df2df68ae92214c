"""Earlier evaluations of judged queries, over HTTP and on their page."""

import httpx

from siglip_pipeline.evaluation.quality_report import NOTHING_FOUND, QualityReport
from siglip_pipeline.text.json_form import to_json


def test_results_are_listed_with_their_history(
    client: httpx.Client, evaluated: QualityReport
) -> None:
    answer = client.get("/api/evaluations").json()
    newest, older = answer["evaluations"]
    assert (answer["total"], answer["next"]) == (2, None)
    assert newest["purpose"] == "command"
    report = to_json(evaluated)
    assert newest["queries"] == len(report.pop("queries"))
    assert {name: newest[name] for name in report} == report
    assert (newest["min_probability"], older["min_probability"]) == (0.3, 0)
    assert newest["digest"] == older["digest"], "they compare"

    page = client.get("/api/evaluations?limit=1&judged=judged+%3Cb%3E.jsonl").json()
    assert page["evaluations"] == [newest]
    rest = client.get(page["next"]).json()
    assert (rest["evaluations"], rest["next"]) == ([older], None)
    assert client.get("/api/evaluations?purpose=check").json()["total"] == 0
    assert client.get("/api/evaluations?judged=other.jsonl").json()["evaluations"] == []
    unknown = client.get("/api/evaluations?file=x")
    assert unknown.status_code == 422
    assert "file: no such parameter" in unknown.json()["error"]["message"]


def test_the_page_shows_the_newest_and_the_history(
    client: httpx.Client, evaluated: QualityReport
) -> None:
    page = client.get("/evaluations").text
    for value in evaluated.overall.metrics:
        assert f"<td>{value.metric}</td>" in page
    assert NOTHING_FOUND in page
    assert "<td>nothing here</td>" in page, "a tag"
    assert page.count("judged &lt;b&gt;.jsonl</a>") == 2
    assert "No evaluations" in client.get("/evaluations?judged=other.jsonl").text
