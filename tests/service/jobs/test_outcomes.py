"""What a job is to be registered as is checked when it is ordered, not when it has been trained."""

import pytest

from adapters.errors import InvalidRequest
from service.jobs.orders import Register
from service.jobs.outcomes import check_register


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alias", "In Production"),
        ("note", "x" * 2001),
        ("tags", {"No Name": "a"}),
        ("tags", {f"t{i}": "a" for i in range(32)}),  # and one that names the job
    ],
)
def test_what_the_registry_would_refuse_is_refused_by_its_field(field, value):
    with pytest.raises(InvalidRequest) as caught:
        check_register(Register.model_validate({"name": "a", field: value}))
    assert caught.value.param == f"register.{field}"


def test_as_many_tags_as_the_registry_takes_beside_its_own_are_let_in():
    tags = {f"t{i}": "a" for i in range(31)}
    check_register(Register(name="a", alias="production", note="x" * 2000, tags=tags))
