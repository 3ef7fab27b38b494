"""The bank under churn: bounded bytes, nothing in use is taken, every place holds what it should."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.backbone import load_backbone
from adapters.bundle import load_bundle
from adapters.errors import InvalidBundle
from adapters.runtime.bank import Bank, to_torch
from tests.bundles import classifier, save_bundle

HEAD = 2 * (32 + 1) * 4  # bytes of a head of two labels
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


steps = st.lists(
    st.tuples(st.sampled_from(["install", "acquire", "release"]), st.sampled_from("01234")),
    max_size=60,
)


@given(steps, st.integers(40_000, 120_000))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_the_bound_holds_and_weights_stay_whose_they_are(
    backbone, bundles, actions, size_bytes
):
    bank = Bank(backbone, size_bytes)
    users = dict.fromkeys(bundles, 0)
    try:
        for action, name in actions:
            if action == "install" and name not in bank and bank.can_install(bundles[name]):
                bank.install(name, bundles[name])
            elif action == "acquire" and name in bank:
                bank.acquire(name)
                users[name] += 1
            elif action == "release" and users[name]:
                bank.release(name)
                users[name] -= 1
            assert real_bytes(bank) == bank.used_bytes <= size_bytes
            assert all(name in bank for name, count in users.items() if count)
            for name in bank.digests:
                assert_holds(bank, name, bundles[name])
    finally:
        bank.close()


def real_bytes(bank):
    stacks = [stack for layer in bank._layers.values() for stack in layer.stacks.values()]
    heads = [p for r in bank._residents.values() if r.head for p in r.head.parameters()]
    return sum(s.a_CRI.nbytes + s.b_CRO.nbytes for s in stacks) + sum(p.nbytes for p in heads)


def assert_holds(bank, name, bundle):
    resident = bank._residents[name]
    for path, module in bundle.modules.items():
        stack = bank._layers[path].stacks[resident.pool.number]
        a, b = stack.a_CRI[resident.place], stack.b_CRO[resident.place]
        assert torch.equal(a[: module.rank], to_torch(module.a))
        assert torch.allclose(b[: module.rank], to_torch(module.b).T * module.scale)
        assert not a[module.rank :].any()
        assert not b[module.rank :].any()


def test_an_adapter_of_few_modules_takes_no_room_in_the_others(backbone, bundles):
    bank = Bank(backbone, 10**6)
    bank.install("1", bundles["1"])
    touched = {path for path, layer in bank._layers.items() if layer.stacks}
    assert touched == {f"model.layers.{i}.self_attn.q_proj" for i in range(2)}
    assert bank.used_bytes == 4 * (2 * 4 * (32 + 32) * 4) + HEAD
    bank.close()


def test_the_least_recently_used_adapter_makes_room(backbone, bundles):
    bank = Bank(backbone, 2 * (14_848 + HEAD))
    for name in ("0", "4"):
        bank.install(name, bundles[name])
    assert bank.used_bytes == 2 * (
        14_848 + HEAD
    )  # 14 modules of 928 features in all, padded rank 4, fp32
    bank.acquire("0")
    bank.release("0")
    bank.install("3", bundles["3"])
    assert bank.digests == ["0", "3"]
    bank.close()


def test_shapes_that_come_and_go_leave_nothing_behind(backbone, bundles):
    bank = Bank(backbone, 60_000)
    for _ in range(3):
        for name, bundle in bundles.items():
            if name not in bank:
                bank.install(name, bundle)
            assert real_bytes(bank) == bank.used_bytes <= 60_000
    bank.close()


def test_an_adapter_that_fits_no_bank_is_refused(backbone, bundles):
    bank = Bank(backbone, 1000)
    with pytest.raises(InvalidBundle, match="1000"):
        bank.check_size(bundles["2"])
    bank.close()
