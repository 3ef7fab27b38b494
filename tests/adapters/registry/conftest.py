"""Bundles of the tiny decoder, and a registry to put them in."""

import pytest

from tests.bundles import answerer, classifier, save_bundle
from tests.registries import NUM_BUNDLES, open_registry


@pytest.fixture(scope="session")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("registry-bundles")
    for seed in range(NUM_BUNDLES):
        save_bundle(root / str(seed), decoder_spec, classifier(), seed=seed)
    save_bundle(root / "answers", decoder_spec, answerer())
    return root


@pytest.fixture(params=["folder", "memory"])
def registry(request, tmp_path, decoder_spec):
    blobs = None if request.param == "folder" else f"memory://{tmp_path.name}"
    return open_registry(tmp_path, decoder_spec, blobs)
