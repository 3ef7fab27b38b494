"""What deploy/ holds beside Kubernetes' manifests, which have a test of their own: compose, Prometheus and nginx."""

import re
import shutil
import subprocess

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed (make test-backends does it).")

import yaml

from service.launchers.catalog import set_up_launchers
from service.settings import Settings, load_settings
from tests.servers import ROOT

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (apt install prometheus).")
    return found


def test_the_images_are_the_dockerfile_s_targets(compose):
    targets = re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    built = {s["image"]: s["build"] for s in compose["services"].values() if "build" in s}
    assert set(built) == {"headstock-serve", "headstock-train"}
    for build in built.values():
        assert build["target"] in targets
        assert (DEPLOY / build["context"] / "Dockerfile").is_file()


def test_what_is_mounted_is_there_and_volumes_are_declared(compose):
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                # The key is made by the commands at the top of the file.
                assert source == "./key" or (DEPLOY / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_settings_are_settings(compose):
    known = {f"HEADSTOCK_{name.upper()}" for name in Settings.model_fields}
    for service in compose["services"].values():
        given = {name for name in service.get("environment", {}) if name.startswith("HEADSTOCK_")}
        assert given <= known
    config, secret = yaml.safe_load_all((DEPLOY / "kubernetes" / "config.yaml").read_text())
    named = {*config["data"], *secret["stringData"]}
    assert {name for name in named if name.startswith("HEADSTOCK_")} <= known


def manifests(name):
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def containers_of(name):
    (pod,) = (m["spec"]["template"]["spec"] for m in manifests(name) if m["kind"] == "Deployment")
    return pod["containers"]


@pytest.mark.parametrize("name", ["serve.yaml", "worker.yaml"])
def test_on_kubernetes_server_and_worker_run_jobs_where_the_worker_may(name, monkeypatch):
    """The server that takes a job chooses its launcher, and the worker starts it: both need to know how."""
    config, secret = manifests("config.yaml")
    (container,) = containers_of(name)
    own = {each["name"]: each["value"] for each in container.get("env", [])}
    for variable, value in {**config["data"], **secret["stringData"], **own}.items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.job_launcher == "kubernetes"
    assert "kubernetes" in set_up_launchers(settings)
    (kustomization,) = manifests("kustomization.yaml")
    assert settings.kubernetes_namespace == kustomization["namespace"]  # the worker's role is of it
    (claim,) = manifests("storage.yaml")
    assert settings.kubernetes_claim == claim["metadata"]["name"]
    assert settings.container_image == containers_of("worker.yaml")[0]["image"]


def test_an_image_without_the_trainer_starts_no_workers():
    serve = (ROOT / "Dockerfile").read_text().split("FROM base AS serve")[1]
    assert ("[train" in serve) or ("ENV HEADSTOCK_JOB_WORKERS=0" in serve)


def test_nginx_and_prometheus_know_all_servers(compose):
    servers = {name for name in compose["services"] if name.startswith("serve-")}
    upstreams = (DEPLOY / "nginx" / "upstreams.conf").read_text()
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert set(re.findall(r"server ([\w-]+):8000", upstreams)) == servers
    assert {target.removesuffix(":8000") for target in targets} == servers


def test_prometheus_takes_its_configuration_and_rules(promtool):
    folder = DEPLOY / "prometheus"
    config = ["check", "config", "--syntax-only", str(folder / "prometheus.yml")]
    for command in (config, ["check", "rules", str(folder / "rules.yml")]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(promtool, tmp_path):
    series = {
        "headstock_engine_up": "0+0x10",
        "headstock_waiting_rows": "300+0x20",
        'headstock_jobs{status="queued"}': "3+0x30",
        'headstock_jobs{status="running"}': "0+0x30",
        'headstock_jobs{status="failed"}': "0+1x90",
    }

    def test_of(alert, minutes):
        return {"alertname": alert, "eval_time": f"{minutes}m", "exp_alerts": []}

    asked = [
        test_of("EngineDown", 3),
        test_of("RowsWait", 15),
        test_of("JobsWait", 20),
        test_of("JobsFail", 70),
    ]
    test = {
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": n, "values": v} for n, v in series.items()],
                "alert_rule_test": asked,
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run([promtool, "test", "rules", str(path)], capture_output=True, text=True)
    # None was expected: what promtool says it got instead is what fires.
    for alert in asked:
        assert f"alertname: {alert['alertname']}" in done.stdout + done.stderr, alert
