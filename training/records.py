"""Files of records: JSON lines, CSV or Parquet at any fsspec URL, read one record at a time."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from adapters.errors import InvalidData

MAX_CELL_CHARACTERS = 16 * 2**20
_PARQUET_ROWS = 1024
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a line holds no record, and the kind of fault that it is counted under."""

    kind: str
    message: str


def file_name(url: str) -> str:
    """Return the last part of a file's URL, as messages name it."""
    return PurePosixPath(url).name


def read_records(url: str) -> Iterator[tuple[int, Record | Fault]]:
    """Yield line number (1 is the first; of Parquet, the row's) and record, or what is wrong with the line.

    Raises:
        InvalidData: the file can't be read at all, or is not UTF-8.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix not in (".jsonl", ".csv", ".parquet"):
        raise _no_data_file(url, suffix)
    try:
        if suffix == ".parquet":
            with fsspec.open(url, "rb") as file:
                yield from _parquet_rows(file)
        else:
            # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
            with fsspec.open(url, "rt", encoding="utf-8-sig", newline="") as file:
                yield from _json_lines(file) if suffix == ".jsonl" else _csv_rows(file)
    except UnicodeDecodeError as error:
        raise _not_utf8(url) from error
    except FileNotFoundError as error:
        raise InvalidData(f"No file '{url}'. Check the path.", param="data") from error
    except (OSError, ValueError, ImportError, csv.Error) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InvalidData(f"Can't read '{file_name(url)}': {said}.", param="data") from error


def parsed(value: Any) -> Any:
    """Return the list or object that a cell spells as JSON; anything else as it is."""
    if not (isinstance(value, str) and value.startswith(("[", "{"))):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def stored_class_names(url: str) -> dict[str, list[str]]:
    """Return the names of numbered classes by column, as the Hub's Parquet files store them; else nothing."""
    if PurePosixPath(url).suffix.lower() != ".parquet":
        return {}
    with fsspec.open(url, "rb") as file:
        stored = (_parquet().read_schema(file).metadata or {}).get(b"huggingface")
    features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
    found = {column: _class_names(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def _class_names(feature: Any) -> list[str]:
    """Return a feature's class names; a list of classes holds them one level down."""
    while isinstance(feature, dict) and "names" not in feature and "feature" in feature:
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _json_lines(file: Any) -> Iterator[tuple[int, Record | Fault]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        begin = line.strip()[:60]
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Fault("not JSON", f"'{begin}' is not JSON ({error}).")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Fault("no object", f"'{begin}' is no object.")


def _csv_rows(file: Any) -> Iterator[tuple[int, Record | Fault]]:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.DictReader(file)
    for record in reader:
        if None in record or None in record.values():
            columns = len(reader.fieldnames or ())
            message = f"the row does not have the header's {columns} columns."
            yield reader.line_num, Fault("wrong width", message)
        else:
            yield reader.line_num, record


def _parquet_rows(file: Any) -> Iterator[tuple[int, Record | Fault]]:
    number = 0
    for batch in _parquet().ParquetFile(file).iter_batches(batch_size=_PARQUET_ROWS):
        for record in batch.to_pylist():
            number += 1
            # Parquet has a place for every column in every row, and for every key in every object: an empty one is
            # a field that is not there.
            yield number, _without_empty(record)


def _without_empty(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_empty(each) for key, each in value.items() if each is not None}


def _parquet() -> Any:
    import pyarrow.parquet  # slow to load, and most files are JSON lines

    return pyarrow.parquet


def _no_data_file(url: str, suffix: str) -> InvalidData:
    if _HUB_ID.fullmatch(url) and not Path(url).exists():
        return InvalidData(
            f"'{url}' is no file here, and data sets are not fetched from the Hub by their id. Download it "
            f"(hf download --repo-type dataset {url} --local-dir data) and name its .parquet, .jsonl or .csv file; "
            f"or name one file of it as hf://datasets/{url}/FILE.",
            param="data",
        )
    return InvalidData(
        f"'{file_name(url)}' ends in '{suffix}'; examples come as .jsonl, .csv or .parquet.",
        param="data",
    )


def _not_utf8(url: str) -> InvalidData:
    """Return the error that names the first line which is no UTF-8; decoding ran ahead of the lines."""
    with fsspec.open(url, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return InvalidData(
                    f"Line {number} of '{file_name(url)}' is not UTF-8: byte '0x{line[error.start]:02x}' at "
                    f"place {error.start + 1}. Save the file as UTF-8.",
                    param="data",
                )
    return InvalidData(f"'{file_name(url)}' is not UTF-8. Save the file as UTF-8.", param="data")
