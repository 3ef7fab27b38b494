"""Bundles of every task on the tiny decoder, for the servers of these tests."""

import shutil

import pytest

from tests.bundles import answerer, classifier, save_bundle, summarizer
from tests.servers import running_server


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("server-bundles")
    for name, task in {
        "labels": classifier(2),
        "labels-2": classifier(2),
        "many": classifier(77),
        "answers": answerer(),
        "summary": summarizer(),
    }.items():
        save_bundle(root / name, decoder_spec, task, seed=len(name))
    return root


@pytest.fixture(scope="session")
def trusted(tmp_path_factory, bundles):
    """A folder that servers may fetch bundles from."""
    folder = tmp_path_factory.mktemp("trusted")
    shutil.copytree(bundles / "labels", folder / "labels")
    return folder


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory, bundles):
    """A folder as peft writes it, without a manifest, and with a tokenizer's file beside it."""
    folder = shutil.copytree(bundles / "summary", tmp_path_factory.mktemp("stock") / "stock")
    (folder / "manifest.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, decoder_folder, bundles, trusted):
    home = tmp_path_factory.mktemp("server-home")
    settings = {"dtype": "float32", "max_row_tokens": 200, "bundle_urls": str(trusted)}
    with running_server(home, str(decoder_folder), **settings) as running:
        client, _ = running
        for name in ("labels", "many", "answers", "summary"):
            client.create_version(name, bundles / name)
        yield running


@pytest.fixture
def client(server):
    return server[0]
