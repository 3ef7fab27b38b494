"""Bundles of every task on the tiny decoder, for the servers of these tests."""

import pytest

from tests.bundles import answerer, classifier, save_bundle, summarizer


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
