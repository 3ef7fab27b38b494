"""Made adapters are real ones: sealed, of the shape asked for, and the same each time."""

import pytest

from adapters.bundle import load_bundle
from benchmarks.bundles import QUERY_VALUE, Lora, classifier, make_bundle, writer


def test_a_made_bundle_passes_every_check(tmp_path, decoder_spec):
    make_bundle(tmp_path / "a", decoder_spec, classifier(77), 0)
    bundle = load_bundle(tmp_path / "a", decoder_spec)
    assert set(bundle.modules) == set(decoder_spec.modules)
    assert bundle.head["weight"].shape == (77, decoder_spec.hidden_size)


@pytest.mark.parametrize("spec", ["decoder_spec", "encoder_spec"])
def test_query_and_value_are_all_that_is_adapted_where_only_they_are_asked_for(
    tmp_path, request, spec
):
    spec = request.getfixturevalue(spec)
    make_bundle(tmp_path / "a", spec, classifier(2), 0, Lora(rank=4, targets=QUERY_VALUE))
    modules = load_bundle(tmp_path / "a", spec).modules
    assert {path.rsplit(".", 1)[-1] for path in modules} <= set(QUERY_VALUE)
    assert len(modules) == 4
    assert {module.rank for module in modules.values()} == {4}


def test_the_seed_decides_the_digest(tmp_path, decoder_spec):
    made = {
        name: load_bundle(make_bundle(tmp_path / name, decoder_spec, writer(), seed)).digest
        for name, seed in (("a", 0), ("again", 0), ("b", 1))
    }
    assert made["a"] == made["again"] != made["b"]
