"""The promotion gate: only what is better on the same test rows takes an alias over."""

import pytest

from adapters.bundle import read_manifest
from adapters.errors import Conflict, InvalidRequest
from adapters.registry.promotion import Rule, compare
from tests.bundles import classifier, save_bundle
from tests.registries import open_registry

ROWS, OTHER_ROWS = "a" * 64, "b" * 64
VERSIONS = (  # metrics and test rows of versions 1, 2 …
    ({"accuracy": 0.80, "ece": 0.05}, ROWS),
    ({"accuracy": 0.82, "ece": 0.10}, ROWS),
    ({"accuracy": 0.90}, OTHER_ROWS),
    ({"accuracy": 0.90}, None),
    ({}, ROWS),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("promoted")
    for i, (metrics, rows) in enumerate(VERSIONS):
        task = classifier()
        save_bundle(root / str(i), decoder_spec, task, seed=i, metrics=metrics, test_rows=rows)
    return root


@pytest.fixture
def registry(stores, decoder_spec, bundles):
    registry = open_registry(stores, decoder_spec)
    for i in range(len(VERSIONS)):
        registry.create_version("a", bundles / str(i))
    return registry


def test_the_first_version_is_promoted_whatever_it_is(registry):
    done = registry.promote("a", "production", 5, Rule())
    assert (done.is_moved, done.alias.version, done.comparison.current) == (True, 5, None)


def test_a_better_version_takes_over_and_a_worse_one_is_told_why_not(registry):
    registry.set_alias("a", "production", 1)
    done = registry.promote("a", "production", 2, Rule())
    assert (done.is_moved, done.alias.version) == (True, 2)
    assert done.comparison.gain == pytest.approx(0.02)
    worse = registry.promote("a", "production", 1, Rule())
    assert (worse.is_moved, worse.alias.version) == (False, 2)
    assert worse.comparison.reason == (
        "accuracy is 0.8000 against 0.8200, a gain of -0.0200; at least +0.0000 was asked."
    )


@pytest.mark.parametrize(
    ("rule", "is_moved"),
    [
        (Rule(min_gain=0.01), True),
        (Rule(min_gain=0.03), False),
        (Rule("ece"), False),  # less of it is better
        (Rule("ece", min_gain=-0.06), True),
    ],
)
def test_the_rule_decides(registry, rule, is_moved):
    registry.set_alias("a", "production", 1)
    assert registry.promote("a", "production", 2, rule).is_moved is is_moved


@pytest.mark.parametrize(
    ("number", "rule", "error", "message"),
    [
        (
            3,
            Rule(),
            Conflict,
            "fingerprint 'bbbbbbbbbbbb…', the current version on 'aaaaaaaaaaaa…'",
        ),
        (4, Rule(), Conflict, "The candidate was not tested"),
        (5, Rule(), Conflict, "has no metric 'accuracy' after training. It has none"),
        (2, Rule("f1"), Conflict, "has no metric 'f1' after training. It has 'accuracy', 'ece'"),
        (2, Rule(min_gain=float("nan")), InvalidRequest, "min_gain is 'nan'"),
    ],
)
def test_what_cannot_be_compared_is_refused(registry, number, rule, error, message):
    registry.set_alias("a", "production", 1)
    with pytest.raises(error) as caught:
        registry.promote("a", "production", number, rule)
    assert message in caught.value.message
    assert registry.get_alias("a", "production").version == 1


def test_a_promotion_on_old_knowledge_is_refused(registry):
    first = registry.set_alias("a", "production", 1)
    registry.set_alias("a", "production", 1)
    for rule in (Rule(), Rule(min_gain=0.5)):  # met, and not met
        with pytest.raises(Conflict, match="revision"):
            registry.promote("a", "production", 2, rule, if_revision=first.revision)


def test_a_gain_of_just_what_is_asked_is_enough(decoder_spec, bundles):
    def measured(accuracy):
        manifest = read_manifest(bundles / "0")
        return manifest.model_copy(update={"metrics": {"after": {"accuracy": accuracy}}})

    assert compare(measured(0.57), measured(0.56), Rule(min_gain=0.01)).is_met
    assert not compare(measured(0.5699), measured(0.56), Rule(min_gain=0.01)).is_met
