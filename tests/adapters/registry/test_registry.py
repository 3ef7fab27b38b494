"""The registry: versions count up, aliases move, nothing half-done is ever seen."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import BackboneMismatch, Conflict, EnvironmentProblem, InvalidBundle, NotFound
from adapters.reference import parse_reference
from adapters.registry.blobs import BlobStore
from adapters.registry.database import Database
from adapters.registry.registry import Registry
from tests.bundles import answerer, classifier, save_bundle

NUM_BUNDLES = 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, decoder_spec):
    root = tmp_path_factory.mktemp("registry-bundles")
    for seed in range(NUM_BUNDLES):
        save_bundle(root / str(seed), decoder_spec, classifier(), seed=seed)
    save_bundle(root / "answers", decoder_spec, answerer())
    return root


def open_registry(folder, spec, blobs=None):
    folder.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{folder / 'registry.db'}")
    registry = Registry(database, BlobStore(blobs or str(folder / "blobs"), folder / "cache"))
    registry.add_backbone(spec)
    return registry


@pytest.fixture(params=["folder", "memory"])
def registry(request, tmp_path, decoder_spec):
    blobs = None if request.param == "folder" else f"memory://{tmp_path.name}"
    return open_registry(tmp_path, decoder_spec, blobs)


def resolve(registry, reference):
    return registry.resolve(parse_reference(reference)).number


def test_versions_count_up_and_the_same_bundle_keeps_its_number(registry, bundles):
    numbers = [registry.create_version("a", bundles / name).number for name in "0121"]
    assert numbers == [1, 2, 3, 2]
    assert [version.number for version in registry.list_versions("a")] == [1, 2, 3]


def test_a_bare_name_is_production_or_else_the_newest(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    assert resolve(registry, "a") == 2
    registry.set_alias("a", "production", 1)
    registry.create_version("a", bundles / "2")
    assert (resolve(registry, "a"), resolve(registry, "a@production")) == (1, 1)
    assert resolve(registry, "a:3") == 3


def test_what_is_fetched_is_what_was_pushed(registry, bundles):
    version = registry.create_version("a", bundles / "0")
    folder = registry._blobs.fetch(version.digest)
    for path in (bundles / "0").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody", "No adapter named 'nobody'. Known: 'a'."),
        ("a:9", "'a' has no version '9'. Its newest is 1."),
        ("a@canary", "'a' has no alias 'canary'. Known: none yet."),
        ("other/a", "No adapter named 'a'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(registry, bundles, reference, message):
    registry.create_version("a", bundles / "0")
    with pytest.raises(NotFound) as caught:
        resolve(registry, reference)
    assert message in caught.value.message


def test_namespaces_do_not_see_each_other(registry, bundles):
    registry.create_version("a", bundles / "0", namespace="blue")
    registry.create_version("a", bundles / "1", namespace="red")
    assert resolve(registry, "blue/a") == resolve(registry, "red/a") == 1
    assert [adapter.namespace for adapter in registry.list_adapters("red")] == ["red"]
    assert registry.list_adapters() == []


def test_an_alias_moves_only_from_the_revision_that_was_read(registry, bundles):
    for name in "01":
        registry.create_version("a", bundles / name)
    first = registry.set_alias("a", "production", 1, if_revision=0)
    registry.set_alias("a", "production", 2, if_revision=first.revision)
    with pytest.raises(Conflict, match="revision '2'"):
        registry.set_alias("a", "production", 1, if_revision=first.revision)
    assert resolve(registry, "a") == 2


def test_an_alias_cannot_point_at_nothing(registry, bundles):
    registry.create_version("a", bundles / "0")
    with pytest.raises(NotFound):
        registry.set_alias("a", "production", 2)
    assert resolve(registry, "a") == 1


def test_one_adapter_keeps_to_one_task(registry, bundles):
    registry.create_version("a", bundles / "0")
    with pytest.raises(Conflict, match="text-classification"):
        registry.create_version("a", bundles / "answers")


def test_a_bundle_for_an_unknown_backbone_is_refused(registry, tmp_path, encoder_spec):
    save_bundle(tmp_path / "bundle", encoder_spec, classifier())
    with pytest.raises(BackboneMismatch, match="Known: tiny-llama"):
        registry.create_version("a", tmp_path / "bundle")
    assert registry.list_adapters() == []


def test_a_damaged_bundle_leaves_nothing_behind(registry, bundles, tmp_path):
    bad = shutil.copytree(bundles / "0", tmp_path / "bad")
    (bad / "head.safetensors").write_bytes(b"")
    generation = registry.generation()
    with pytest.raises(InvalidBundle):
        registry.create_version("a", bad)
    assert registry.list_adapters() == []
    assert registry.generation() == generation


def test_every_write_raises_the_generation(registry, bundles):
    seen = [registry.generation()]
    registry.create_version("a", bundles / "0")
    seen.append(registry.generation())
    registry.set_alias("a", "production", 1)
    seen.append(registry.generation())
    assert seen == sorted(set(seen))


def test_many_threads_adding_at_once_get_a_number_each(tmp_path, decoder_spec, bundles):
    registries = [open_registry(tmp_path, decoder_spec) for _ in range(NUM_BUNDLES)]
    with ThreadPoolExecutor(NUM_BUNDLES) as pool:
        made = pool.map(
            lambda i: registries[i].create_version("a", bundles / str(i)).number, range(NUM_BUNDLES)
        )
    assert sorted(made) == [1, 2, 3, 4]


def test_a_registry_opened_again_remembers(tmp_path, decoder_spec, bundles):
    first = open_registry(tmp_path, decoder_spec)
    first.create_version("a", bundles / "0")
    first.set_alias("a", "production", 1)
    assert resolve(open_registry(tmp_path, decoder_spec), "a@production") == 1


def test_the_database_is_in_wal_mode(tmp_path, decoder_spec):
    open_registry(tmp_path, decoder_spec)
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_that_cannot_be_opened_is_the_environments_fault(tmp_path):
    with pytest.raises(EnvironmentProblem, match="HEADSTOCK_HOME"):
        Database(f"sqlite:///{tmp_path / 'not-there' / 'registry.db'}")


actions = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from("ab"), st.integers(0, NUM_BUNDLES - 1)),
        st.tuples(st.just("alias"), st.sampled_from("ab"), st.integers(1, 5)),
    ),
    max_size=12,
)


@given(actions)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_history_gives_what_a_plain_model_of_it_gives(
    tmp_path_factory, decoder_spec, bundles, history
):
    registry = open_registry(tmp_path_factory.mktemp("history"), decoder_spec)
    versions, production = {"a": [], "b": []}, {}
    for kind, name, number in history:
        if kind == "create":
            made = registry.create_version(name, bundles / str(number))
            if number not in versions[name]:
                versions[name].append(number)
            assert made.number == versions[name].index(number) + 1
        elif number <= len(versions[name]):
            registry.set_alias(name, "production", number)
            production[name] = number
        else:
            with pytest.raises(NotFound):
                registry.set_alias(name, "production", number)
    for name, made in versions.items():
        if made:
            assert resolve(registry, name) == production.get(name, len(made))
    known = [adapter.name for adapter in registry.list_adapters()]
    assert known == [name for name, made in versions.items() if made]
