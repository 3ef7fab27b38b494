"""What is imported together is left alone by the garbage collector, which works on as before."""

import gc

import pytest

from adapters.imports import many_imports


class Ring:
    """An object that only the collector can free."""

    def __init__(self):
        self.self = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_comes_meanwhile_is_not_looked_at_again():
    frozen = gc.get_freeze_count()
    with many_imports():
        assert not gc.isenabled()
        made = [Ring() for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen + 1000
    assert not any(type(each) is Ring for each in gc.get_objects())
    assert len(made) == 1000


def test_an_import_that_fails_leaves_the_collector_at_work():
    with pytest.raises(ModuleNotFoundError), many_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
