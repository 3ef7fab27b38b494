"""Without the packages that only training needs, as the server's image is: what works, and what is said."""

import re
import subprocess
import sys
import tomllib

import pyarrow
from pyarrow import parquet

from tests.runs import GOOD, ROOT, command, films_config
from training.contract import ExitCode

_IMPORTED_AS = {"scikit-learn": "sklearn", "rouge-score": "rouge_score"}


def trainers_packages():
    """Return what the extra 'train' brings, as it is imported; PyYAML comes with transformers in any case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [re.match(r"[\w-]+", each)[0] for each in project["optional-dependencies"]["train"]]
    return [_IMPORTED_AS.get(name, name) for name in named if name != "pyyaml"]


def without_them(code, *arguments):
    hidden = f"import sys; sys.modules.update(dict.fromkeys({trainers_packages()!r})); "
    return subprocess.run(
        [sys.executable, "-c", hidden + code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_says_what_to_install(tmp_path, decoder_folder):
    arguments = command(tmp_path, films_config(tmp_path, decoder_folder))[3:]
    run = "from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = without_them(run, *arguments)
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert "is not installed, which training needs" in done.stderr
    assert "headstock[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_gate_reads_parquet(tmp_path):
    path = tmp_path / "films.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
    check = "from training.gate import check_upload; print(check_upload(sys.argv[1]).task)"
    assert without_them(check, str(path)).stdout == "text-classification\n"
