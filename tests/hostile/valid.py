"""Files that Keel reads without a fault, in every format: what fuzzing and mutation start from."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi", "response": "Hello, you.", "rating": 3, "scale": [1, 5], "accepted": True, "topic": "é\u2028 😀"},
    {"prompt": "Tea?", "response": "Yes.\nPlease.", "rating": 1.5, "scale": [1, 5], "accepted": False, "topic": ""},
]
LAYOUTS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello", "rejected": "What?", "margin": 0.5},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"instruction": "Add", "input": "1 1", "output": "2"},
    {"instruction": "Add", "instances": [{"input": "1 1", "output": "2"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
    {"prompt": "Hi", "responses": ["a", "b"], "preferred": "tie"},
    {"prompt": "Hi", "completion": "Hello", "label": True},
]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


FILES: dict[str, bytes] = {
    "rows.jsonl": _jsonl(ROWS),
    "layouts.jsonl": _jsonl(LAYOUTS),
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "rows.csv": b'prompt,response,rating\n"Hi, you","He said ""yes""",3\nTea?,Yes,1\n',
    "plain.csv": b'prompt;response\nHi;"So" what\nTea?;Yes\n',
    "rows.tsv": b"prompt\tchosen\trejected\nHi\tHello\tWhat?\n",
    "rows.txt": b"One.\nMore.\n\nTwo.\n",
    "ends.txt": b"One.\n\nMore.<|endoftext|>Two.<|endoftext|>",
    "rows.parquet": _parquet(ROWS),
    "rows.jsonl.gz": gzip.compress(_jsonl(ROWS), mtime=0),
    "rows.parquet.gz": gzip.compress(_parquet(ROWS), mtime=0),
}
"""By a name whose ending fits."""
