"""Any history of a registry comes to what a plain model of it says."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import Conflict, NotFound
from tests.registries import NUM_BUNDLES, open_registry, resolve

names, numbers = st.sampled_from("ab"), st.integers(1, NUM_BUNDLES)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("create"), names, st.integers(0, NUM_BUNDLES - 1)),
        st.tuples(st.sampled_from(["alias", "delete", "delete by force"]), names, numbers),
        st.tuples(st.just("roll back"), names, st.just(0)),
    ),
    max_size=16,
)


class PlainModel:
    """What one adapter's history must come to: bundles by number, what is deleted, and production's path."""

    def __init__(self):
        self.bundles, self.deleted, self.path = [], set(), []

    @property
    def live(self):
        return [n for n in range(1, len(self.bundles) + 1) if n not in self.deleted]

    def create(self, bundle):
        if bundle not in self.bundles:
            self.bundles.append(bundle)
        number = self.bundles.index(bundle) + 1
        self.deleted.discard(number)
        return number

    def alias(self, number):
        if number not in self.live:
            return NotFound
        self.path.append(number)
        return number

    def delete(self, number, *, force):
        if number not in self.live:
            return NotFound
        if self.path and self.path[-1] == number:
            if not force:
                return Conflict
            self.path = []
        self.deleted.add(number)
        return None

    def roll_back(self):
        if not self.live or not self.path:
            return NotFound
        places = [i for i, n in enumerate(self.path[:-1]) if n in self.live and n != self.path[-1]]
        if not places:
            return Conflict
        self.path = self.path[: places[-1] + 1]
        return self.path[-1]


def act(registry, kind, name, number):
    try:
        if kind == "alias":
            return registry.set_alias(name, "production", number).version
        if kind == "roll back":
            return registry.roll_back(name, "production").version
        return registry.delete_version(name, number, force=kind == "delete by force")
    except (NotFound, Conflict) as error:
        return type(error)


@given(actions)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_history_gives_what_a_plain_model_of_it_gives(
    new_stores, decoder_spec, bundles, history
):
    registry = open_registry(new_stores(), decoder_spec)
    models = {"a": PlainModel(), "b": PlainModel()}
    for kind, name, number in history:
        model = models[name]
        if kind == "create":
            made = registry.create_version(name, bundles / str(number)).number
            assert made == model.create(number)
            continue
        expected = {
            "alias": lambda m=model, n=number: m.alias(n),
            "roll back": model.roll_back,
            "delete": lambda m=model, n=number: m.delete(n, force=False),
            "delete by force": lambda m=model, n=number: m.delete(n, force=True),
        }[kind]()
        assert act(registry, kind, name, number) == expected
    for name, model in models.items():
        if model.live:
            assert [v.number for v in registry.list_versions(name)] == model.live
            assert resolve(registry, name) == (model.path or model.live)[-1]
    known = [adapter.name for adapter in registry.list_adapters()]
    assert known == [name for name, model in models.items() if model.live]
