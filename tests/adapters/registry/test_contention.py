"""Two replicas that register, alias and delete the same name at once: each change is whole, or refused."""

import random
from concurrent.futures import ThreadPoolExecutor

from adapters.errors import Conflict, HeadstockError, InvalidRequest, NotFound
from tests.registries import NUM_BUNDLES, open_registry

NAME, ALIASES, STEPS = "reviews", ("production", "candidate"), 40
# What may be said of a change that another one was faster than; anything else is a fault.
REFUSALS = (Conflict, NotFound, InvalidRequest)


def act(registry, bundles, seed):
    """Do random changes; returns what was refused that should not be."""
    chance = random.Random(seed)
    wrong = []
    for _ in range(STEPS):
        version, alias = chance.randint(1, NUM_BUNDLES), chance.choice(ALIASES)
        change = chance.choice(
            [
                lambda: registry.create_version(NAME, bundles / str(chance.randrange(NUM_BUNDLES))),
                lambda: registry.create_version(NAME, bundles / str(chance.randrange(NUM_BUNDLES))),
                lambda v=version, a=alias: registry.set_alias(NAME, a, v),
                lambda a=alias: registry.roll_back(NAME, a),
                lambda a=alias: registry.remove_alias(NAME, a),
                lambda v=version: registry.delete_version(NAME, v, force=chance.random() < 0.5),
                lambda: registry.delete_adapter(NAME, force=chance.random() < 0.5),
            ]
        )
        try:
            change()
        except HeadstockError as error:
            if not isinstance(error, REFUSALS):
                wrong.append(repr(error))
    return wrong


def test_two_replicas_that_change_one_name_at_once_agree(stores, decoder_spec, bundles):
    replicas = [open_registry(stores, decoder_spec) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(act, replicas * 2, [bundles] * 4, range(4)))
    assert told == [[]] * 4
    version = replicas[0].create_version(NAME, bundles / "0")  # there is one, whatever came last
    for registry in replicas:
        found = registry.list_versions(NAME)
        assert version.number in [each.number for each in found]
        assert len({each.digest for each in found}) == len({each.number for each in found})
        live = {each.number for each in found}
        assert all(alias.version in live for alias in registry.get_adapter(NAME).aliases)
        for each in found:
            fetched = registry.fetch(each)
            assert (fetched / "manifest.json").is_file()
