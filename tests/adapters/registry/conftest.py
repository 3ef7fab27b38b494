"""Bundles of the tiny decoder, and a registry to put them in."""

import pytest

from tests.bundles import answerer, classifier, save_bundle
from tests.registries import NUM_BUNDLES, open_registry, stores_in


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("registry-bundles")
    for seed in range(NUM_BUNDLES):
        save_bundle(root / str(seed), decoder_spec, classifier(), seed=seed)
    save_bundle(root / "answers", decoder_spec, answerer())
    return root


@pytest.fixture(params=["folder", "memory"])
def new_stores(request, tmp_path_factory):
    """Return what gives a new, empty pair of database and blob store each time it is called."""

    def make():
        folder = tmp_path_factory.mktemp("stores")
        return stores_in(folder, None if request.param == "folder" else f"memory://{folder.name}")

    return make


@pytest.fixture
def stores(new_stores):
    return new_stores()


@pytest.fixture
def registry(stores, decoder_spec):
    return open_registry(stores, decoder_spec)
