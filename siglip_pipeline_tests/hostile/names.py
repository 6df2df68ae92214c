"""Names that uploads may have, and names that they may not."""

STEMS = {
    "quotes": 'it\'s "so" `good`',
    "html": "<script>alert(1)</script>&amp;",
    "sql": "'; DROP TABLE videos; --",
    "markup": "[bold]x[/bold] [/] :smile: {{ 7*7 }} ${x} %s {0}",
    "newline": "two\nlines\r\n",
    "terminal": "\x1b[2Jcleared\x07\x7f",
    "reversed": "invoice\u202egpj",
    "invisible": "a\u200bb\ufeff\u2060",
    "separator": "line\u2028para\u2029",
    "joined": "می\u200cخواهم 👨\u200d👩\u200d👧",
    "dots": "a...b.. .",
    "encoded": "%2e%2e%2fetc%2fpasswd %00 %%",
    "glob": "a[1]*?{x,y}",
    "address": "a?versionId=7&x=1#frag;type=a",
    "protocol": "concat:a|b http:x",
    "dash": "-rf --help",
    "space": "  spaces  ",
    "backslash": "a\\..\\x",
    "at": "a@12.5",
    "long": "y" * 251,
    "longunicode": "ü" * 125,
    "nfc": "caf\u00e9",
    "nfd": "cafe\u0301",
    "lower": "case",
    "upper": "CASE",
    "wide": "漢字かな𝒳",
}

GOOD = (
    *(f"{stem}.mp4" for stem in STEMS.values()),
    "clash.mp4",
    "clash.mp4.frames.parquet/inside.mp4",
    "[x]*#/?.mp4",
    "-/--.mp4",
    "/".join(["d" * 200] * 4) + "/deep.mp4",
    "%long/x.mp4",
)
"""Each of these is a video like any other."""
GOOD_IN_BUCKETS = tuple(
    name
    for name in GOOD
    # The S3 server of these tests cannot be asked for a key with a line break.
    if not name.startswith((STEMS["newline"], STEMS["address"]))
)

REFUSED_BY_FOLDERS = {
    "\udcff.mp4": "not valid UTF-8",
    "sub/caf\udce9.mp4": "not valid UTF-8",
    "/".join([*["%" * 200] * 3, "%" * 100]) + ".mp4": "at most 2000",
}
"""Part of the reason by name, for names that a folder may hold."""

REFUSED_BY_BUCKETS = {
    "a//b.mp4": "empty, . or ..",
    f"{STEMS['address']}.mp4": "a version of another file",
    "../x.mp4": "empty, . or ..",
    "a/../../x.mp4": "empty, . or ..",
    "./x.mp4": "empty, . or ..",
    "%" * 900 + ".mp4": "at most 2000",
}
"""The same for keys of a bucket."""
