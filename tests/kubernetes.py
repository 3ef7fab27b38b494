"""As much of Kubernetes as launcher 'kubernetes' uses: an API over HTTP that checks Jobs by the published schema, and
one node that runs their containers' commands as processes of this machine, on paths that are the same here and there.
"""

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml

VERSION = "1.32"


class Pod:
    """A Job's pod: one process."""

    def __init__(self, job, labels, container):
        self.job, self.labels = job, {**labels, "job-name": job}
        self.created = datetime.now(UTC).isoformat()
        self.reason = None
        values = {each["name"]: each["value"] for each in container["env"]}
        home = container["args"][-1]
        places = {"HEADSTOCK_HOME": home, "HOME": home}
        python = os.path.dirname(sys.executable)
        self.process = subprocess.Popen(
            [*container["command"], *container["args"]],
            env={**os.environ, **values, **places, "PATH": f"{python}:{os.environ['PATH']}"},
            start_new_session=True,
        )

    def end(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def shown(self):
        code = self.process.poll()
        state = {"running": {}}
        if code is not None:
            code = 128 - code if code < 0 else code
            state = {"terminated": {"exitCode": code, "reason": self.reason or "Completed"}}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        status = {"name": "run", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
        return {
            "metadata": {
                "name": f"{self.job}-x",
                "labels": self.labels,
                "creationTimestamp": self.created,
            },
            "status": {"phase": phase, "containerStatuses": [{**status, "state": state}]},
        }


class Api(http.server.ThreadingHTTPServer):
    """Jobs by name, and their pods."""

    def __init__(self, home):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.home = home
        self.jobs, self.pods, self.seen = {}, [], []

    def create(self, job):
        kubernetes_validate.validate(job, VERSION, strict=True)
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"reason": "AlreadyExists"}
        self.jobs[name] = job
        self.seen.append(job)
        template = job["spec"]["template"]
        (container,) = template["spec"]["containers"]
        container = {**container, "args": [*container["args"][:-1], str(self.home)]}
        self.pods.append(Pod(name, template["metadata"]["labels"], container))
        return 201, job

    def patch(self, name, change):
        self.jobs[name]["spec"].update(change["spec"])
        for pod in self.pods_of(name):
            pod.end(signal.SIGTERM)
            threading.Thread(target=self._remove_when_ended, args=(pod,), daemon=True).start()
        return 200, self.jobs[name]

    def delete(self, name):
        del self.jobs[name]
        for pod in self.pods_of(name):
            pod.end(signal.SIGKILL)
            pod.process.wait()
            self.pods.remove(pod)
        return 200, {}

    def pods_of(self, name):
        return [pod for pod in self.pods if pod.job == name]

    def _remove_when_ended(self, pod):
        pod.process.wait()
        if pod in self.pods:
            self.pods.remove(pod)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, query = urlparse(self.path).path, parse_qs(urlparse(self.path).query)
        parts = path.strip("/").split("/")
        wanted = dict(
            part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part
        )
        api = self.server
        if parts[-1] == "pods":
            found = [p.shown() for p in api.pods if wanted.items() <= p.labels.items()]
            self._send(200, {"items": found})
        elif parts[-1] == "jobs":
            jobs = [
                j for j in api.jobs.values() if wanted.items() <= j["metadata"]["labels"].items()
            ]
            self._send(200, {"items": jobs})
        elif parts[-1] in api.jobs:
            self._send(200, {**api.jobs[parts[-1]], "status": {}})
        else:
            self._send(404, {"reason": "NotFound"})

    def do_POST(self):
        self._send(*self.server.create(self._body()))

    def do_PATCH(self):
        self._named(lambda name: self.server.patch(name, self._body()))

    def do_DELETE(self):
        self._named(self.server.delete)

    def _named(self, act):
        name = urlparse(self.path).path.rpartition("/")[2]
        self._send(*(act(name) if name in self.server.jobs else (404, {"reason": "NotFound"})))

    def _body(self):
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def _send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def running_api(home, config):
    """Serve, and write the kubectl configuration that finds it."""
    with Api(home) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        server = f"http://127.0.0.1:{api.server_port}"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
        }
        config.write_text(yaml.safe_dump(content))
        try:
            yield api
        finally:
            for pod in api.pods:
                pod.end(signal.SIGKILL)
            api.shutdown()
