"""Published forms of annotations, on small made files of each form."""

import re
from pathlib import Path

import pytest

from siglip_pipeline.errors import JudgedQueriesError
from siglip_pipeline.evaluation.annotations import FORMS, read_judged
from siglip_pipeline.evaluation.judged_queries import RelevantMoment
from siglip_pipeline.evaluation.metrics import Metric
from siglip_pipeline_tests.evaluation.conftest import write_lines

FILES = {
    "qvhighlights": (
        '{"qid": 8737, "query": "A family plays basketball.", "duration": 126,'
        ' "vid": "bP5KfdFJzC4_660.0_810.0", "relevant_windows": [[0, 16], [20, 24]],'
        ' "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 1, 1], [4, 1, 1]]}'
    ),
    "charades-sta": "3MSZA 24.3 30.4##person turn a light on.",
    "didemo": (
        '[{"annotation_id": 1, "description": "a dog runs", "video": "1234@N01_56.avi",'
        ' "num_segments": 6, "times": [[0, 0], [0, 0], [1, 2], [0, 0]]}]'
    ),
    "activitynet-captions": (
        '{"v_one": {"duration": 82.7, "timestamps": [[0.83, 19.86], [60.8, 17.4]],'
        ' "sentences": ["A man plays. ", " He stops."]}}'
    ),
    "tvr-ranking": (
        '[{"query_id": 54251, "query": "A man talks.", "relevant_moment": ['
        '{"pair_id": 0, "video_name": "house_s07e03", "timestamp": [63.47, 77.42],'
        ' "duration": 90.02, "similarity": 1.0, "relevance": 4},'
        '{"pair_id": 1, "video_name": "house_s07e04", "timestamp": [1, 2],'
        ' "duration": 90.02, "similarity": 0.1, "relevance": 0}]}]'
    ),
    "momentseeker": (
        '[{"qry_text": "a goal", "qry_img_path": "", "qry_video_path": "", "gt_indices": [1],'
        ' "candidate_video_list": [{"output_path": "/x/game_1/0.00_3.00.mp4"},'
        ' {"output_path": "/x/game_1/3.00_9.50.mp4"}]},'
        ' {"qry_text": "like this", "qry_img_path": "a.png", "qry_video_path": "",'
        ' "gt_indices": [0], "candidate_video_list": [{"output_path": "/x/game_1/0_3.mp4"}]}]'
    ),
    "msrvtt-1ka": (
        'key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person, connecting something"\n'
    ),
}
READ: dict[str, tuple[str, list[tuple[str, float, float, int]], bool]] = {
    "qvhighlights": (
        "A family plays basketball.",
        [("bP5KfdFJzC4_660.0_810.0", 0, 16, 1), ("bP5KfdFJzC4_660.0_810.0", 20, 24, 1)],
        True,
    ),
    "charades-sta": ("person turn a light on.", [("3MSZA", 24.3, 30.4, 1)], True),
    "didemo": (
        "a dog runs",
        [("1234@N01_56.avi", 0, 5, 3), ("1234@N01_56.avi", 5, 15, 1)],
        True,
    ),
    "activitynet-captions": ("A man plays.", [("v_one", 0.83, 19.86, 1)], True),
    "tvr-ranking": ("A man talks.", [("house_s07e03", 63.47, 77.42, 15)], False),
    "momentseeker": ("a goal", [("game_1", 3, 9.5, 1)], True),
    "msrvtt-1ka": (
        "a person, connecting something",
        [("video9770", 0, float("inf"), 1)],
        False,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_published_form_is_read(tmp_path: Path, form: str) -> None:
    judged = read_judged(write_lines(tmp_path / "annotations", FILES[form]), form)
    text, moments, in_its_video = READ[form]
    query = judged.queries[0]
    assert query.label == text
    assert query.relevant == tuple(
        RelevantMoment(video=video, start_seconds=start, end_seconds=end, grade=grade)
        for video, start, end, grade in moments
    )
    assert query.videos == ((moments[0][0],) if in_its_video else None)
    assert judged.metrics
    assert all(Metric(name).measure() for name in judged.metrics)


def test_times_that_were_published_exchanged_are_put_in_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.json", FILES["activitynet-captions"])
    second = read_judged(path, "activitynet-captions").queries[1]
    assert (second.label, second.line) == ("He stops.", 2)
    assert second.relevant[0].start_seconds == 17.4


def test_queries_with_pictures_are_left_to_those_who_have_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.json", FILES["momentseeker"])
    assert len(read_judged(path, "momentseeker").queries) == 1


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("qvhighlights", '{"query": "x"}', "line 1: the field vid is missing; there are query"),
        ("qvhighlights", "x", "line 1: no JSON"),
        ("charades-sta", "3MSZA 24.3##x", "line 1: '3MSZA 24.3##x' is not VIDEO START END##SENTE"),
        ("charades-sta", "3MSZA 30 a##x", r"line 1: \['30', 'a'\]: give a start and an end"),
        ("charades-sta", "3MSZA 30 20##x", "line 1: the moment 30 to 20 s of '3MSZA': its start"),
        ("didemo", '[{"video": "a", "times": 3}]', "line 1: times=3: give a list"),
        ("didemo", '[{"video": 3}]', "line 1: video=3: give a text"),
        ("activitynet-captions", "[]", "give a JSON object with an entry for each video"),
        (
            "activitynet-captions",
            '{"v": {"sentences": ["a"], "timestamps": []}}',
            "'v' has 1 sentences and 0 timestamps; each sentence needs one",
        ),
        ("tvr-ranking", '[{"query": "x", "relevant_moment": [7]}]', "line 1: '7' is no JSON obj"),
        (
            "tvr-ranking",
            '[{"query": "x", "relevant_moment": [{"relevance": "4"}]}]',
            "line 1: relevance='4': give a number",
        ),
        (
            "momentseeker",
            '[{"qry_text": "x", "gt_indices": [1], "candidate_video_list": []}]',
            "line 1: .*IndexError.*; the entry has not this form",
        ),
        ("msrvtt-1ka", "key,sentence\n1,x", "line 2: the field video_id is missing; there are key"),
        ("msrvtt-1ka", "key,sentence", "holds no queries of the form msrvtt-1ka"),
        ("coco", "", "there is no form 'coco'; allowed are judged, qvhighlights"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, form: str, text: str, said: str) -> None:
    with pytest.raises(JudgedQueriesError, match=said):
        read_judged(write_lines(tmp_path / "annotations", text), form)


def test_the_documentation_lists_the_metrics_of_each_form_with_their_source() -> None:
    page = (Path(__file__).parents[2] / "docs/quality.md").read_text()
    rows = page.partition("| form | file |")[2].partition("\n\n")[0].splitlines()[2:]
    listed = {}
    for row in rows:
        form, _, _, metrics, source = (cell.strip() for cell in row.strip("|").split(" | "))
        listed[form.strip("`")] = tuple(re.findall(r"`([^`]+)`", metrics))
        assert "https://arxiv.org/abs/" in source
    assert listed == {form: published.metrics for form, published in FORMS.items()}
