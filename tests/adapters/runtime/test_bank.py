"""The bank under churn: bounded bytes and slots, nothing held is taken, every adapter's weights are its own."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.bundle import load_bundle
from adapters.errors import InvalidBundle
from adapters.runtime.bank import Bank
from adapters.runtime.host import HostTier
from adapters.runtime.weights import prepare_weights, to_torch, weights_bytes
from tests.bundles import classifier, save_bundle

SHAPES = [
    {"rank": 4},
    {"rank": 3, "target_modules": ["q_proj"]},
    {"rank": 9},
    {"rank": 4, "target_modules": ["q_proj"]},
    {"rank": 2},
]


@pytest.fixture(scope="module")
def backbone(decoder_spec):
    return load_backbone(decoder_spec, "float32")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec, backbone):
    root = tmp_path_factory.mktemp("bank")
    made = {}
    for seed, lora in enumerate(SHAPES):
        save_bundle(
            root / str(seed), decoder_spec, classifier(), seed=seed, backbone=backbone, **lora
        )
        made[str(seed)] = load_bundle(root / str(seed), decoder_spec)
    return made


@pytest.fixture(scope="module")
def weights(bundles):
    return {name: prepare_weights(bundle, torch.float32, 32) for name, bundle in bundles.items()}


actions = st.sampled_from(["install", "acquire", "release", "pin", "unpin"])
steps = st.lists(st.tuples(actions, st.sampled_from("01234")), max_size=60)


@given(steps, st.integers(40_000, 120_000), st.sampled_from([None, 1, 2, 3]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_the_bounds_hold_and_what_is_held_stays(
    backbone, weights, actions, size_bytes, num_slots
):
    bank = Bank(backbone, size_bytes, num_slots)
    users, pins = dict.fromkeys(weights, 0), set()
    try:
        for action, name in actions:
            size = weights[name].size_bytes
            if action == "install" and name not in bank and bank.can_install(size):
                bank.install(name, weights[name])
            elif action == "acquire" and name in bank:
                bank.acquire(name)
                users[name] += 1
            elif action == "release" and users[name]:
                bank.release(name)
                users[name] -= 1
            elif action in ("pin", "unpin") and name in bank:
                bank.pin(name, pinned=action == "pin")
                (pins.add if action == "pin" else pins.discard)(name)
            assert bank.used_bytes <= size_bytes
            assert len(bank.digests) <= (num_slots or 99)
            assert all(name in bank for name in weights if users[name] or name in pins)
            ending = bank.must_end(size)
            assert not pins & set(ending)
            assert bool(ending) <= (not bank.can_install(size))
    finally:
        bank.close()


def test_weights_are_those_of_the_bundle_with_the_scale_folded_in(bundles, weights):
    for name, bundle in bundles.items():
        assert set(weights[name].modules) == set(bundle.modules)
        for path, (a, b) in weights[name].modules.items():
            module = bundle.modules[path]
            assert torch.equal(a, to_torch(module.a))
            assert torch.allclose(b, to_torch(module.b).T * module.scale)
        for key, parameter in weights[name].head.named_parameters():
            assert torch.equal(parameter, to_torch(bundle.head[key]))


def test_an_adapter_takes_the_bytes_it_has_and_no_more(bundles, weights):
    for name, prepared in weights.items():
        views = [x for pair in prepared.modules.values() for x in pair]
        assert len({x.untyped_storage().data_ptr() for x in views}) == 1
        head = sum(p.nbytes for p in prepared.head.parameters())
        assert views[0].untyped_storage().nbytes() + head == prepared.size_bytes
        assert weights_bytes(bundles[name], torch.float32) == prepared.size_bytes


def test_the_least_recently_used_adapter_makes_room(backbone, weights):
    bank = Bank(backbone, 10**6, num_slots=2)
    for name in ("0", "4"):
        bank.install(name, weights[name])
    bank.acquire("0")
    bank.release("0")
    bank.install("3", weights["3"])
    assert bank.digests == ["0", "3"]
    bank.close()


def test_an_adapter_that_fits_no_bank_is_refused(backbone, weights):
    bank = Bank(backbone, 1000)
    with pytest.raises(InvalidBundle, match="1000"):
        bank.check_size(weights["2"].size_bytes)
    bank.close()


def test_closing_gives_the_backbone_its_own_layers_back(backbone, weights):
    before = dict(backbone.model.named_modules())
    bank = Bank(backbone, 10**6)
    assert dict(backbone.model.named_modules()).keys() != before.keys()
    bank.close()
    after = dict(backbone.model.named_modules())
    assert all(after[path] is module for path, module in before.items())


@given(st.lists(st.sampled_from("01234"), max_size=40), st.integers(0, 60_000))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_host_tier_keeps_what_was_asked_for_last_within_its_bound(weights, names, size_bytes):
    host = HostTier(size_bytes)
    for name in names:
        if host.get(name) is None:
            host.put(name, weights[name])
        kept = [n for n in weights if n in host]
        assert host.used_bytes == sum(weights[n].size_bytes for n in kept) <= size_bytes
        assert (name in host) == (weights[name].size_bytes <= size_bytes)
