"""The registry over HTTP, on a server: bundles in, aliases moved, versions deleted."""

import io
import json
import shutil
import tarfile
import zipfile

import pytest

from service.client import ClientError
from service.demo_traffic import swap_version
from tests.bundles import classifier, save_bundle


def damage_missing(folder):
    (folder / "head.safetensors").unlink()


def damage_hash(folder):
    path = folder / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def damage_pickle(folder):
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def damage_manifest(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["backbone"]["fingerprint"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "status", "code"),
    [
        (damage_missing, 400, "invalid_bundle"),
        (damage_hash, 400, "invalid_bundle"),
        (damage_pickle, 400, "invalid_bundle"),
        (damage_manifest, 409, "backbone_mismatch"),
    ],
)
def test_a_bad_bundle_is_refused_and_changes_nothing(
    client, bundles, tmp_path, damage, status, code
):
    folder = shutil.copytree(bundles / "labels-2", tmp_path / "bad")
    damage(folder)
    before = client.list_adapters()
    with pytest.raises(ClientError) as caught:
        client.create_version("labels", folder)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert client.list_adapters() == before


def test_a_bundle_for_another_backbone_is_a_conflict(client, tmp_path, encoder_spec):
    save_bundle(tmp_path / "other", encoder_spec, classifier())
    with pytest.raises(ClientError) as caught:
        client.create_version("other", tmp_path / "other")
    assert (caught.value.status, caught.value.code) == (409, "backbone_mismatch")


def test_a_tar_that_climbs_out_is_refused(client):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("../manifest.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    response = client._http.post("/v1/adapters", params={"name": "a"}, content=buffer.getvalue())
    assert response.status_code == 400
    assert "../manifest.json" in response.json()["error"]["message"]


def test_a_bundle_comes_as_a_zip_and_in_a_form(client, bundles):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (bundles / "labels").iterdir():
            archive.write(path, path.name)
    data = buffer.getvalue()
    plain = client._http.post("/v1/adapters", params={"name": "zipped"}, content=data)
    files = {"file": ("bundle.zip", data)}
    form = client._http.post("/v1/adapters", data={"name": "formed", "note": "hi"}, files=files)
    assert (plain.status_code, form.status_code) == (201, 201), (plain.text, form.text)
    assert plain.json()["digest"] == form.json()["digest"]
    assert form.json()["note"] == "hi"
    nameless = client._http.post("/v1/adapters", files=files)
    assert nameless.status_code == 400
    assert nameless.json()["error"]["param"] == "name"


def test_a_stock_peft_folder_is_served_as_text_generation(client, stock_folder):
    version = client.create_version("stock", stock_folder)
    assert version["task"] == "text-generation"
    (prediction,) = client.predict("stock", {"prompt": "the sun"}, max_new_tokens=4)
    (bare,) = client.predict("stock", {"prompt": "the sun"}, max_new_tokens=4)
    assert prediction["text"] == bare["text"]
    assert prediction["usage"]["completion_tokens"] <= 4


def test_a_bundle_is_fetched_from_a_trusted_url(client, trusted, bundles):
    body = {"name": "fetched", "url": f"{trusted}/labels", "note": "hi", "tags": {"a": "b"}}
    response = client._http.post("/v1/adapters", json=body)
    assert response.status_code == 201, response.text
    assert (response.json()["note"], response.json()["tags"]) == ("hi", {"a": "b"})
    for url, status in ((str(bundles / "labels"), 400), (f"{trusted}/none", 404)):
        refused = client._http.post("/v1/adapters", json={"name": "fetched", "url": url})
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, "url")
    for wrong in ([], {"name": "a"}, {"name": "a", "url": "x", "more": 1}):
        assert client._http.post("/v1/adapters", json=wrong).status_code == 400


def test_vllm_s_names_load_and_unload(client, trusted):
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    body = {"lora_name": "hot", "lora_path": f"{trusted}/labels"}
    assert client._http.post(load, json=body).text.startswith("Success")
    assert client.predict("hot", "x")[0]["version"] == 1
    assert client._http.post(load, json=body).status_code == 409
    assert client._http.post(load, json={**body, "load_inplace": True}).status_code == 200
    assert client.get_adapter("hot")["latest_version"] == 1  # the same weights
    assert client._http.post(unload, json={"lora_name": "hot"}).text.startswith("Success")
    assert client._http.post(unload, json={"lora_name": "hot"}).status_code == 404
    with pytest.raises(ClientError):
        client.predict("hot", "x")
    elsewhere = client._http.post(load, json={"lora_name": "hot", "lora_path": "/etc"})
    assert elsewhere.status_code == 400


def test_lists_come_in_pages(client, bundles):
    for name in ("page-a", "page-b"):
        client.create_version(name, bundles / "labels")
    client.create_version("page-a", bundles / "labels-2")
    page = client._http.get("/v1/adapters", params={"limit": 1, "after": "page-a"}).json()
    assert [adapter["name"] for adapter in page["adapters"]] == ["page-b"]
    assert page["adapters"][0]["latest_version"] == 1
    path = "/v1/adapters/page-a/versions"
    newest = client._http.get(path, params={"limit": 1}).json()
    assert ([v["version"] for v in newest["versions"]], newest["has_more"]) == ([2], True)
    older = client._http.get(path, params={"limit": 1, "before": 2}).json()
    assert ([v["version"] for v in older["versions"]], older["has_more"]) == ([1], False)
    for wrong in ({"limit": 0}, {"limit": 10**30}, {"before": 0}, {"before": 10**30}):
        assert client._http.get(path, params=wrong).status_code == 400


def test_aliases_move_with_if_match(client, bundles):
    client.create_version("moving", bundles / "labels")
    client.create_version("moving", bundles / "labels-2")
    assert client.predict("moving", "x")[0]["version"] == 2
    first = client.set_alias("moving", "production", 1)
    assert client.predict("moving", "x")[0]["version"] == 1
    with pytest.raises(ClientError) as caught:
        client.set_alias("moving", "production", 2, if_revision=first["revision"] + 1)
    assert caught.value.status == 409
    path = "/v1/adapters/moving/aliases/production"
    for wrong in ("x", "1" * 5000):
        response = client._http.put(path, json={"version": 2}, headers={"If-Match": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "if-match")
    assert client.predict("moving", "x")[0]["version"] == 1
    assert client.get_adapter("moving")["aliases"]["production"]["version"] == 1


def test_an_alias_is_rolled_back_and_tells_its_history(client, bundles):
    client.create_version("undone", bundles / "labels")
    client.create_version("undone", bundles / "labels-2")
    path = "/v1/adapters/undone/aliases/production"
    for number in (1, 2):
        moved = client._http.put(path, json={"version": number})
    stale = client._http.post(f"{path}/rollback", headers={"If-Match": '"1"'})
    assert stale.status_code == 409
    back = client._http.post(f"{path}/rollback", headers={"If-Match": moved.headers["ETag"]})
    assert back.json()["version"] == 1
    assert client.predict("undone", "x")[0]["version"] == 1
    history = client._http.get(path).json()["history"]
    assert [(m["version"], m["is_rollback"]) for m in history] == [
        (1, False),
        (2, False),
        (1, True),
    ]
    assert client._http.post(f"{path}/rollback").json()["error"]["code"] == "conflict"
    assert client._http.delete(path).json()["deleted"]
    assert client._http.get(path).status_code == 404


def test_a_promotion_says_why_it_was_not_made(client, bundles):
    client.create_version("better", bundles / "labels")
    client.create_version("better", bundles / "labels-2")
    path = "/v1/adapters/better/aliases/production"
    first = client._http.put(path, json={"version": 1, "promote_if": {}}).json()
    assert (first["moved"], first["version"]) == (True, 1)
    refused = client._http.put(path, json={"version": 2, "promote_if": {"min_gain": 0.01}})
    assert refused.status_code == 409
    assert "was not tested" in refused.json()["error"]["message"]
    wrong = client._http.put(path, json={"version": 2, "promote_if": {"gain": 1}})
    assert wrong.status_code == 400


def test_a_deleted_version_is_404_at_once(client, bundles):
    client.create_version("gone", bundles / "labels")
    client.create_version("gone", bundles / "labels-2")
    client.set_alias("gone", "production", 1)
    refused = client._http.delete("/v1/adapters/gone/versions/1")
    assert refused.status_code == 409
    assert "'production' at version 1" in refused.json()["error"]["message"]
    assert client._http.delete("/v1/adapters/gone/versions/2").status_code == 200
    with pytest.raises(ClientError) as caught:
        client.predict("gone:2", "x")
    assert caught.value.status == 404
    assert client.predict("gone", "x")[0]["version"] == 1
    assert client._http.delete("/v1/adapters/gone", params={"force": True}).status_code == 200
    assert client._http.get("/v1/adapters/gone").status_code == 404
    assert client._http.delete("/v1/adapters/gone").status_code == 404


def test_a_version_is_read_with_the_manifest_that_was_sent(client, bundles):
    sent = json.loads((bundles / "labels" / "manifest.json").read_text())
    client.create_version("whole", bundles / "labels")
    version = client.get_version("whole", 1)
    assert (version["manifest"], version["digest"]) == (sent, sent["digest"])
    with pytest.raises(ClientError, match="no version '2'"):
        client.get_version("whole", 2)


def test_notes_and_tags_are_written_beside_a_version(client, bundles):
    client.create_version("noted", bundles / "labels")
    path = "/v1/adapters/noted/versions/1"
    body = client._http.patch(path, json={"note": "May", "tags": {"owner": "ana"}}).json()
    assert (body["note"], body["tags"]) == ("May", {"owner": "ana"})
    for wrong in ({"tags": {"a b": "x"}}, {"tags": {"a": 1}}, {"note": "x" * 2001}, {"digest": ""}):
        assert client._http.patch(path, json=wrong).status_code == 400
    assert client._http.get(path).json()["note"] == "May"


def test_a_version_swapped_under_load_loses_nothing(client, server, bundles):
    client.create_version("swapped", bundles / "labels")
    client.set_alias("swapped", "production", 1)
    texts = [f"text number {i} about the sun" for i in range(20)]
    swap = swap_version(
        str(client._http.base_url), "swapped", str(bundles / "labels-2"), texts, print
    )
    assert swap.checks == dict.fromkeys(swap.checks, True)
    assert (swap.failed, swap.old_version, swap.new_version) == (0, 1, 2)
    assert swap.sent > 20


def test_a_web_page_of_elsewhere_uploads_nothing(client, bundles):
    page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    answer = client._http.post("/v1/adapters?name=evil", content=b"", headers=page)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
