"""Fixtures shared by all tests: a clean environment, tiny backbones, their specs and tokenizers."""

import os
from pathlib import Path

import pytest

from tests.homes import share_finds

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from a second thread, and on a busy machine OpenMP's spinning barriers cost a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without a GPU its kernels run in Triton's interpreter, if Triton is told before anything imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No test sees or touches the user's own state."""
    for name in list(os.environ):
        if name.startswith("HEADSTOCK_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    share_finds(home)
    monkeypatch.setenv("HEADSTOCK_HOME", str(home))


# Files, and folders of files, that take minutes: begun first, so that no process is left with one of them alone at
# the end; the longest of all before the others.
LONGEST = ("test_containers.py", "test_ray.py")
LONG = ("end_to_end", "training", "benchmarks")


def pytest_collection_modifyitems(items):
    def rank(item):
        parts = set(Path(item.fspath).parts)
        return (not parts & set(LONGEST), not parts & set(LONG))

    items.sort(key=rank)
    for item in items:
        if "end_to_end" in Path(item.fspath).parts:
            item.add_marker(pytest.mark.end_to_end)
        if "gpu" in Path(item.fspath).parts:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="module")
def films(client, tmp_path_factory) -> str:
    """The id of a file for a small job, on whatever server a module's ``client`` talks to."""
    from tests.jobs import write_films

    path = write_films(tmp_path_factory.mktemp("films") / "films.jsonl")
    return client.create_file(path)["id"]


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory) -> Path:
    from tests.tiny import save_backbone

    return save_backbone(tmp_path_factory.mktemp("backbones") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    from tests.tiny import save_backbone

    return save_backbone(tmp_path_factory.mktemp("backbones") / "tiny-bert", "bert")


@pytest.fixture(scope="session")
def decoder_spec(decoder_folder):
    from adapters.backbone import describe_backbone

    return describe_backbone(decoder_folder)


@pytest.fixture(scope="session")
def encoder_spec(encoder_folder):
    from adapters.backbone import describe_backbone

    return describe_backbone(encoder_folder)


@pytest.fixture(scope="session")
def encoder_decoder_spec(tmp_path_factory):
    from adapters.backbone import describe_backbone
    from tests.tiny import save_backbone

    folder = tmp_path_factory.mktemp("backbones") / "tiny-bart"
    return describe_backbone(save_backbone(folder, "bart", sharpness=8))


@pytest.fixture(scope="session")
def decoder_tokenizer(decoder_folder):
    from adapters.tokenizer import load_tokenizer

    return load_tokenizer(decoder_folder)


@pytest.fixture(scope="session")
def encoder_tokenizer(encoder_folder):
    from adapters.tokenizer import load_tokenizer

    return load_tokenizer(encoder_folder)
