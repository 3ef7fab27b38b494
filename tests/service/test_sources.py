"""What a server fetches by itself lies under a URL that it trusts, links included, and is bounded."""

import http.server
import threading
from typing import ClassVar

import fsspec
import pytest

from adapters.errors import EnvironmentProblem, InvalidRequest, NotFound, TooLarge, Unavailable
from service.sources import fetch_source


@pytest.fixture
def folders(tmp_path):
    for name in ("trusted/one", "other", "out"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("trusted/one", "other"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_bundle_s_own_files_are_copied(folders, scheme):
    trusted = f"{scheme}{folders}/trusted"
    fetch_source(f"{trusted}/one", [trusted], folders / "out", 100)
    assert [path.name for path in (folders / "out").iterdir()] == ["adapter_config.json"]


def test_a_remote_store_is_read(folders):
    with fsspec.open("memory://bundles/one/manifest.json", "w") as file:
        file.write("{}")
    fetch_source("memory://bundles/one", ["memory://bundles/"], folders / "out", 100)
    assert (folders / "out" / "manifest.json").read_text() == "{}"


@pytest.mark.parametrize(
    "path",
    [
        "{0}/other",
        "{0}/trusted",
        "{0}/trusted/../other",
        "{0}/trusted/one/../../other",
        "{0}/trusted-too/one",
        "{0}/trusted/%2e%2e/other",
        "{0}/trusted/./one",
        "{0}/trusted/one::memory://x",
        "{0}/trusted/.\t./other",
        "{0}/trusted/one\n",
        "memory://bundles/one",
        "http://127.0.0.1/x",
        "",
    ],
)
def test_what_lies_elsewhere_is_refused(folders, path):
    with pytest.raises(InvalidRequest, match="does not lie under"):
        fetch_source(path.format(folders), [f"{folders}/trusted"], folders / "out", 100)
    assert list((folders / "out").iterdir()) == []


class Asked(http.server.BaseHTTPRequestHandler):
    """Notes the paths that are asked for, and has none."""

    paths: ClassVar[list[str]] = []

    def do_GET(self):
        self.paths.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("path", [".\t./secret", "a/.\n./.\r./secret", ".\x0b./secret"])
def test_characters_that_clients_drop_do_not_lead_out_of_a_remote_folder(folders, path):
    trusted = "http://127.0.0.1:9/models"
    with pytest.raises(InvalidRequest, match="does not lie under"):
        fetch_source(f"{trusted}/{path}", [trusted], folders / "out", 100)


def test_blanks_in_a_remote_folders_name_are_its_own(folders):
    pytest.importorskip("aiohttp", reason="aiohttp, of headstock[cluster], is not installed here")
    with http.server.HTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        trusted = f"http://127.0.0.1:{server.server_port}/models"
        with pytest.raises(NotFound):
            fetch_source(f"{trusted}/two words", [trusted], folders / "out", 100)
        server.shutdown()
    assert {path.rstrip("/") for path in Asked.paths} == {"/models/two%20words"}


def test_a_kind_of_url_that_needs_a_package_is_told_with_it(folders):
    with pytest.raises(EnvironmentProblem, match=r"headstock\[cluster\]"):
        fetch_source("gs://bucket/one", ["gs://bucket"], folders / "out", 100)


def test_a_login_in_a_trusted_url_is_not_told(folders):
    trusted = ["https://ada:secret@host/models", "s3://key:se/cr@et@bucket", "/srv/a@b"]
    with pytest.raises(InvalidRequest, match="does not lie under") as caught:
        fetch_source("https://elsewhere/x", trusted, folders / "out", 100)
    assert "https://host/models, s3://bucket, /srv/a@b" in caught.value.message


def test_links_do_not_lead_out(folders):
    (folders / "trusted" / "link").symlink_to(folders / "other")
    with pytest.raises(InvalidRequest):
        fetch_source(f"{folders}/trusted/link", [f"{folders}/trusted"], folders / "out", 100)
    inside = folders / "trusted" / "inside"
    inside.mkdir()
    (inside / "adapter_config.json").symlink_to(folders / "other" / "adapter_config.json")
    with pytest.raises(NotFound):
        fetch_source(str(inside), [f"{folders}/trusted"], folders / "out", 100)


def test_without_trusted_urls_nothing_is_fetched(folders):
    with pytest.raises(InvalidRequest, match="HEADSTOCK_BUNDLE_URLS"):
        fetch_source(f"{folders}/trusted/one", [], folders / "out", 100)


def test_large_and_missing_folders_are_told(folders):
    trusted = f"{folders}/trusted"
    with pytest.raises(NotFound):
        fetch_source(f"{trusted}/none", [trusted], folders / "out", 100)
    (folders / "trusted/one/README.md").write_text("x" * 200)
    with pytest.raises(TooLarge):
        fetch_source(f"{trusted}/one", [trusted], folders / "out", 100)


def test_a_store_that_does_not_answer_is_told_as_such(folders, monkeypatch):
    def hang_up(*_, **__):
        raise ConnectionError("the line is dead")

    with fsspec.open("memory://dead/one/manifest.json", "w") as file:
        file.write("{}")
    for method in ("ls", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(fsspec.filesystem("memory"), method, hang_up)
            with pytest.raises(Unavailable, match=r"memory://dead/one.*the line is dead"):
                fetch_source("memory://dead/one", ["memory://dead"], folders / "out", 100)
