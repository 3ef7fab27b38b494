"""Settings: from the environment, overridden by what is given, and refused by name if out of range."""

from pathlib import Path

import pytest

from adapters.errors import EnvironmentProblem, InvalidRequest
from service.settings import (
    Settings,
    load_settings,
    make_folder,
    misspelt_variables,
    prepare_home,
)


def test_defaults_lie_under_the_home_folder(tmp_path):
    settings = load_settings()
    home = tmp_path / "home"
    assert settings.home == home
    assert settings.resolved_database_url() == f"sqlite:///{home}/registry.db"
    assert settings.resolved_blob_url() == f"{home}/blobs"
    assert settings.bundle_cache() == home / "cache" / "bundles"


def test_urls_that_are_set_are_taken_as_they_are():
    settings = load_settings(database_url="sqlite://", blob_url="memory://blobs")
    assert settings.resolved_database_url() == "sqlite://"
    assert settings.resolved_blob_url() == "memory://blobs"


def test_given_values_beat_the_environment_and_the_environment_beats_defaults(monkeypatch):
    monkeypatch.setenv("HEADSTOCK_PORT", "9001")
    monkeypatch.setenv("HEADSTOCK_THREADS", "3")
    settings = load_settings(port=9002, threads=None)
    assert (settings.port, settings.threads) == (9002, 3)
    assert settings.max_running == Settings.model_fields["max_running"].default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "80"),
        ("port", "65536"),
        ("port", "http"),
        ("threads", "0"),
        ("dtype", "int4"),
        ("step_tokens", "15"),
        ("max_bundle_bytes", "-1"),
        ("drain_seconds", "-0.5"),
        ("cache_bytes", "1.5"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_a_value_out_of_range_is_refused_by_name_and_value(monkeypatch, name, value, given):
    monkeypatch.setenv(f"HEADSTOCK_{name.upper()}", "1024" if given else value)
    with pytest.raises(InvalidRequest, match=f"^Setting field '{name}' is '{value}': ") as caught:
        load_settings(**({name: value} if given else {}))
    assert caught.value.param == name


def test_an_unknown_option_is_refused():
    with pytest.raises(InvalidRequest, match="prot"):
        load_settings(prot=9000)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_but_the_port_says_what_it_is(name):
    assert Settings.model_fields[name].description or name == "port"


@pytest.mark.parametrize(
    ("value", "expected"), [("~/heads", "heads"), ("", ".local/share/headstock")]
)
def test_the_home_folder_is_the_one_that_the_rest_of_the_code_uses(monkeypatch, value, expected):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("HEADSTOCK_HOME", value)
    assert load_settings().home == Path("/somewhere") / expected


def test_home_is_made_with_its_parents_and_left_empty(tmp_path):
    home = tmp_path / "a" / "b"
    prepare_home(home)
    prepare_home(home)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_home_that_cannot_be_made_is_named_with_the_variable_to_set(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match=r"Can't write to '.*file.*Set HEADSTOCK_HOME"):
        prepare_home(tmp_path / "file" / below)


def test_another_folder_that_cannot_be_made_has_its_own_hint(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem, match="Choose another"):
        make_folder(tmp_path / "file", hint="Choose another.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"webhook_url": "ftp://there", "webhook_secret": "s"}, "'ftp://there'"),
        ({"webhook_url": "https://there"}, "webhook_secret"),
        ({"webhook_url": "https://there", "webhook_secret": "whsec_!"}, "base64"),
    ],
)
def test_a_webhook_that_could_not_be_called_or_believed_is_refused(given, said):
    with pytest.raises(InvalidRequest, match=said):
        load_settings(**given)


def test_a_misspelt_variable_is_told_and_other_ones_are_not(monkeypatch):
    for name in ("REQUIRE_KEY", "BAKBONE", "PORT", "SERVE_PORT", "SERVE_SERVICE_HOST", "URL"):
        monkeypatch.setenv(f"HEADSTOCK_{name}", "8000")
    for name in ("API_KEY", "BENCH_DATABASE_URL"):
        monkeypatch.setenv(f"HEADSTOCK_{name}", "x")
    assert misspelt_variables() == [
        "'HEADSTOCK_BAKBONE' is not a setting and does nothing. Was 'HEADSTOCK_BACKBONE' meant?",
        "'HEADSTOCK_REQUIRE_KEY' is not a setting and does nothing. Was 'HEADSTOCK_REQUIRE_KEYS' meant?",
    ]


@pytest.mark.parametrize(
    ("device", "is_known"),
    [("cpu", True), ("cuda", True), ("cuda:1", True), ("gpu", False), ("cuda:", False)],
)
def test_a_device_is_one_that_torch_would_take_here(device, is_known):
    if is_known:
        assert load_settings(device=device).device == device
        return
    with pytest.raises(InvalidRequest, match=f"'device' is '{device}': a device is 'cpu'"):
        load_settings(device=device)
