"""Jobs as Kubernetes runs them, against as much of it as can be had without one; the manifests by their schemas."""

import shutil

import pytest
import yaml

pytest.importorskip(
    "kubernetes", reason="kubernetes is not installed (make test-backends does it)."
)

import kubernetes_validate

from tests.jobs import LONG, ended, goes_on_from_a_parent, is_training, submit, told, worker_of
from tests.kubernetes import VERSION, running_api
from tests.servers import ROOT, running_server, wait_until

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def home(tmp_path_factory, decoder_folder):
    home = tmp_path_factory.mktemp("kubernetes-home")
    shutil.copytree(decoder_folder, home / "tiny-llama")
    return home


@pytest.fixture(scope="module")
def api(home):
    with running_api(home, home / "kubeconfig") as made:
        yield made


@pytest.fixture(scope="module")
def server(home, api):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(home / "kubeconfig"))
        settings = {
            "container_image": "headstock-train",
            "kubernetes_claim": "runs",
            "job_launcher": "kubernetes",
        }
        backbone = str(home / "tiny-llama")
        with running_server(home, backbone, dtype="float32", **settings) as running:
            yield running


@pytest.fixture(scope="module")
def client(server):
    return server[0]


def test_a_job_runs_as_a_pod_with_its_bounds_and_its_adapter_is_served(client, api, films, home):
    job = submit(client, films, "films", resources={"memory_bytes": 2**31, "threads": 1})
    done = ended(client, job)
    assert done["status"] == "succeeded", done
    assert client.predict(done["fine_tuned_model"], "a good film")[0]["label"] in ("pos", "neg")
    pod = next(j for j in api.seen if j["metadata"]["labels"]["headstock.dev/job"] == job)["spec"]
    assert pod["backoffLimit"] == 0
    (container,) = pod["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": str(2**31)}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    below = {
        mount["subPath"]: mount.get("readOnly", False)
        for mount in container["volumeMounts"]
        if "subPath" in mount
    }
    assert below == {"backbones": True, f"jobs/{job}": False, "tiny-llama": True}
    wait_until(lambda: not api.jobs)


def test_a_run_in_a_pod_goes_on_from_a_parent(client, films):
    goes_on_from_a_parent(client, films)


def test_a_pod_outlives_its_worker_and_is_found_again(server, client, api, films):
    job = submit(client, films, "outlives", training={"epochs": 150})
    is_training(client, job)
    worker_of(server[1]).kill()
    assert ended(client, job)["status"] == "succeeded"
    assert sum(j["metadata"]["labels"]["headstock.dev/job"] == job for j in api.seen) == 1


def test_a_paused_job_s_pod_saves_a_checkpoint_and_another_goes_on(client, api, films):
    job = submit(client, films, "paused", training=LONG)
    is_training(client, job)
    client.change_job(job, "pause")
    wait_until(lambda: client.get_job(job)["paused"] and not api.pods)
    assert client.get_job(job)["status"] == "queued"
    client.change_job(job, "resume")
    wait_until(lambda: any("checkpoint" in line for line in told(client, job)[-4:]), seconds=120)
    client.change_job(job, "cancel")
    assert ended(client, job)["status"] == "cancelled"
    wait_until(lambda: not api.pods and not api.jobs)


def test_a_pod_that_is_lost_is_replaced(client, api, films):
    job = submit(client, films, "lost", training={"epochs": 300, "checkpoint_seconds": 0.2})
    is_training(client, job)
    (pod,) = api.pods
    api.pods.remove(pod)
    api.jobs[pod.job]["spec"]["suspend"] = False
    pod.end(9)
    del api.jobs[pod.job]
    done = ended(client, job)
    assert done["status"] == "succeeded", done
    assert any("gone" in line for line in told(client, job))


def test_a_run_out_of_memory_is_told_so(client, api, films):
    job = submit(client, films, "small", training=LONG, resources={"memory_bytes": 2**27})
    is_training(client, job)
    (pod,) = api.pods
    pod.reason = "OOMKilled"
    pod.end(9)
    done = ended(client, job)
    assert (done["status"], done["error"]["code"]) == ("failed", "out_of_memory")


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "kubernetes").rglob("*.yaml")), ids=lambda p: p.name
)
def test_what_deploy_holds_is_what_kubernetes_takes(path):
    for resource in yaml.safe_load_all(path.read_text()):
        if "kind" in resource:  # a kustomization is none of Kubernetes's own
            kubernetes_validate.validate(resource, VERSION, strict=True)


def test_the_kustomization_names_every_manifest():
    folder = DEPLOY / "kubernetes"
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {*named, "kustomization.yaml"} == {path.name for path in folder.glob("*.yaml")}
