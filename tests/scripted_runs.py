"""A launcher whose runs do as they are told, for what a worker makes of them."""

import json
import shutil
from dataclasses import dataclass, field

from service.launchers.base import GONE
from training.contract import ExitCode, RunResult


@dataclass
class ScriptedLauncher:
    """Runs that end at once with a code, or when they are stopped; each writes what it is told to."""

    codes: list = field(default_factory=list)  # None: it goes on until it is stopped
    bundle: object = None
    events: tuple = ()
    heeds_stop: bool = True
    started: list = field(default_factory=list)
    stopped: list = field(default_factory=list)
    forgotten: list = field(default_factory=list)
    ends: dict = field(default_factory=dict)

    def check(self, order):
        pass

    def start(self, run):
        name = f"run-{len(self.started)}"
        if self.bundle is not None:
            shutil.copytree(self.bundle, run.folder / "bundle", dirs_exist_ok=True)
        result = RunResult(task="text-classification", primary_metric="accuracy", num_tokens=7)
        (run.folder / "result.json").write_text(result.model_dump_json())
        (run.folder / "log.txt").write_text("last words\n")
        with (run.folder / "events.jsonl").open("a") as file:
            for number, kind, message in self.events:
                event = {"number": number, "time": 0, "kind": kind, "message": message, "data": {}}
                file.write(json.dumps(event) + "\n")
        self.ends[name] = self.codes.pop(0) if self.codes else ExitCode.DONE
        self.started.append(run)  # last of all: a test that sees it may say how it ends
        return {"name": name}

    def exit_code(self, handle):
        return self.ends.get(handle["name"], GONE)

    def forget(self, handle):
        self.forgotten.append(handle["name"])

    def stop(self, handle, *, at_once=False):
        self.stopped.append(at_once)
        if self.heeds_stop or at_once:
            self.ends[handle["name"]] = -9 if at_once else ExitCode.PAUSED
