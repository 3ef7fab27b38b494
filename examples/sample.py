"""Draw the samples under examples/data from the full data sets: ``python examples/sample.py SOURCE``.

SOURCE holds a folder a data set (sentence_polarity, squad_v1, scitldr) with train.jsonl and test.jsonl. The
draw is fixed by a hash of each row, so it does not depend on the order of the source.
"""

import hashlib
import json
import sys
from pathlib import Path

TARGET = Path(__file__).parent / "data"
KEEP = {
    "sentence_polarity": ("text", "label"),
    "squad_v1": ("id", "question", "context", "answers"),
    "scitldr": ("text", "summary"),
}


def rows(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda row: hashlib.sha256(json.dumps(row).encode()).hexdigest())


def write(name: str, part: str, chosen: list[dict]) -> None:
    folder = TARGET / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = [{key: row[key] for key in KEEP[name]} for row in chosen]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (folder / f"{part}.jsonl").write_text(text)


def main(source: Path) -> None:
    polarity = rows(source / "sentence_polarity" / "train.jsonl")
    write("sentence_polarity", "train", polarity[:2400])
    write("sentence_polarity", "more", polarity[2400:3000])  # what the second version learns from
    write("sentence_polarity", "test", rows(source / "sentence_polarity" / "test.jsonl")[:500])
    # Short contexts only, so that the demo's training fits its time; the test rows are not filtered.
    short = [r for r in rows(source / "squad_v1" / "train.jsonl") if len(r["context"]) <= 560]
    write("squad_v1", "train", short[:700])
    write("squad_v1", "test", rows(source / "squad_v1" / "test.jsonl")[:240])
    short = [r for r in rows(source / "scitldr" / "train.jsonl") if len(r["text"]) <= 1100]
    write("scitldr", "train", short[:300])
    write("scitldr", "test", rows(source / "scitldr" / "test.jsonl")[:60])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
