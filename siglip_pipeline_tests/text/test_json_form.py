"""The JSON of records is what the docs promise: keys in order, rounded numbers, nothing None."""

import json
import subprocess
import sys

from siglip_pipeline.hits import Hit, Moment, SearchFilter
from siglip_pipeline.search import QueryShown, SearchResult
from siglip_pipeline.text.json_form import to_json, to_json_bytes

HIT = Hit(
    video="a b/ü.mp4",
    video_id=7,
    time_seconds=12.00049,
    frame_index=300,
    score=0.31234567,
    probability=0.87654321,
    start_seconds=11.0,
    end_seconds=14.00051,
    media_time_seconds=14.00049,
)


def test_a_result_is_the_document_of_search() -> None:
    filter = SearchFilter(videos=("a*",), from_seconds=1.5)
    like = Moment(video="b.mp4", time_seconds=3.0)
    result = SearchResult(
        query=QueryShown(like=like, k=10, filter=filter), model="tiny", hits=(HIT,)
    )
    expected = (
        '{"query":{"like":{"video":"b.mp4","time_seconds":3.0},"k":10,"filter":{"videos":["a*"],'
        '"from_seconds":1.5}},"model":"tiny","hits":[{"video":"a b/ü.mp4","video_id":7,'
        '"time_seconds":12.0,"frame_index":300,"score":0.312346,"probability":0.876543,'
        '"start_seconds":11.0,"end_seconds":14.001,"media_time_seconds":14.0}]}'
    )
    assert to_json_bytes(result).decode() == expected
    assert json.dumps(to_json(result), ensure_ascii=False, separators=(",", ":")) == expected


def test_a_command_reads_no_source_code_to_print_a_result() -> None:
    """Schemas describe fields by it; a command that asks a service prints none."""
    code = (
        "import linecache; from pydantic import TypeAdapter; "
        "from siglip_pipeline.hits import SearchResult; import siglip_pipeline.cli.service_search; "
        "TypeAdapter(SearchResult); print(*linecache.cache)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"<string>"}, "the code above, which Python 3.13 keeps"
