"""What the data gate found, as a run stores it and people read it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adapters.errors import InvalidData
from adapters.tasks.base import Strict


class Finding(Strict):
    """One thing that is wrong (``error``: training can't work) or doubtful (``warning``) about a data set."""

    level: Literal["error", "warning"]
    code: str = Field(description="Stable name of the check, such as duplicates.")
    message: str
    param: str | None = None


class LineProblem(Strict):
    """Why one line of a file is no example; of Parquet, ``line`` is the row."""

    line: int
    kind: str
    message: str


class Percentiles(Strict):
    """How long inputs are: half of them at most ``p50``, and so on."""

    p50: int
    p90: int
    p99: int
    longest: int


class SplitReport(Strict):
    """One split in numbers."""

    num_rows: int
    fingerprint: str = Field(description="SHA-256 over the rows' content, in order.")
    labels: dict[str, int] = Field(
        default_factory=dict, description="Rows (of tags: entities) by label, commonest first."
    )
    lengths: dict[str, Percentiles] = Field(
        default_factory=dict, description="By unit: characters, words, and tokens where known."
    )


class FileReport(Strict):
    """What became of one file's lines and columns."""

    name: str
    columns: dict[str, str] = Field(description="The task's field to the file's column.")
    unused: list[str] = Field(default_factory=list, description="Columns that nothing reads.")
    problems: list[LineProblem] = Field(description="The first lines that are no examples.")
    problem_counts: dict[str, int] = Field(description="All of them, by kind.")


class Report(Strict):
    """Everything the gate says about a run's data."""

    task: str
    files: dict[str, FileReport] = Field(default_factory=dict)
    splits: dict[str, SplitReport] = Field(default_factory=dict)
    findings: list[Finding] = Field(default_factory=list)

    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    def warnings(self) -> list[str]:
        return [finding.message for finding in self.findings if finding.level == "warning"]

    def validate_data(self) -> None:
        """Raise `InvalidData` with the first error's words, if there is one."""
        errors = self.errors()
        if errors:
            more = f" ({len(errors) - 1} more; see 'headstock data check')" if errors[1:] else ""
            raise InvalidData(errors[0].message + more, param=errors[0].param)
