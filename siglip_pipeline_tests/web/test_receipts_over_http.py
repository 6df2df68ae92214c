"""Proofs and permalinks over HTTP and on the page."""

from html import unescape

import httpx


def test_an_answer_with_its_proof_and_its_permalink(client: httpx.Client) -> None:
    asked = {"q": "a red circle", "k": "3", "videos": "*.mp4", "prove": "1", "permalink": "1"}
    answer = client.get("/api/search", params=asked).json()
    assert answer["proof"]["complete"] is True
    assert answer["proof"]["missed"] == []
    link = answer["permalink"]
    assert link.startswith("/api/search?q=a+red+circle&k=3&videos=%2A.mp4&min_probability=0&pin=")
    assert "prove" not in link
    again = client.get(link).json()
    assert again["reproduced"] == {"same": True}
    assert again["hits"] == answer["hits"]
    old = answer["pin"].replace("@1.", "@9.")
    changed = client.get("/api/search", params={"q": "a red circle", "pin": old}).json()
    assert changed["reproduced"]["reason"] == "index generation 9 was replaced by 1"
    plain = client.get("/api/search", params={"q": "a red circle"}).json()
    assert not {"proof", "pin", "permalink", "reproduced"} & set(plain)
    similar = client.get("/api/similar", params={"like": "one.mp4@3", "prove": "1"}).json()
    assert similar["proof"]["recall"] == 1
    wrong = client.get("/api/search", params={"q": "a", "pin": "x"})
    assert wrong.status_code == 400


def test_the_page_proves_and_links(client: httpx.Client) -> None:
    page = unescape(client.get("/", params={"q": "a red circle"}).text)
    assert 'href="/?q=a+red+circle&prove=1"' in page
    proved = client.get("/?q=a+red+circle&prove=1").text
    assert "The index missed nothing (recall 1.000)" in proved
    linked = unescape(client.get("/?q=a+red+circle&permalink=1").text)
    link = linked.partition('id="permalink" href="')[2].partition('"')[0]
    assert "pin=" in link
    assert 'id="changed"' not in client.get(link).text
    stale = client.get(link.replace("%401.", "%409.")).text
    assert "This is not the answer that was pinned: index generation 9 was replaced" in stale
