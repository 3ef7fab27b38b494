"""``python -m training.gang run.json --out FOLDER --workers 2``: one fit by several processes, placed by Ray Train.

Each is ``python -m training`` as `accelerate launch` would start it, on whatever node Ray finds room; ``--out`` and
``--home`` are the same on all nodes. A fit that lost a process is not tried again here, but by whoever started this.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from adapters.home import default_home
from training.contract import STOP_NAME, ExitCode

_LOOK_SECONDS = 0.2
_NUM_LINES = 50
# A process dies with the Ray worker that started it: when a node is lost, those on the others wait for it in vain.
_BOUND = ("setpriv", "--pdeathsig", "KILL")
_TOLD = (ExitCode.DONE, ExitCode.FAILED, ExitCode.BAD_INPUT, ExitCode.PAUSED)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.gang", description=__doc__)
    parser.add_argument("config", type=Path, help="the run's JSON file")
    parser.add_argument("--out", type=Path, required=True, help="folder for events and bundle")
    parser.add_argument("--home", type=Path, default=default_home(), help="folder of backbones")
    parser.add_argument("--workers", type=int, required=True, help="processes that fit together")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of each")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each")
    parser.add_argument("--memory", type=int, help="bytes of each, for Ray to find room")
    options = parser.parse_args(arguments)
    stop = options.out / STOP_NAME
    stop.unlink(missing_ok=True)
    try:
        code = _fit(options, stop)
    except Exception as error:  # of Ray: a lost worker, its controller, or the cluster; the fit itself is elsewhere
        print(f"Error: {type(error).__name__}: {error}", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    if code != ExitCode.DONE and stop.exists():
        return ExitCode.PAUSED
    if code != ExitCode.DONE:
        _tell_logs(options.out)
    return code


def _tell_logs(out: Path) -> None:
    """Say what the processes said last: what is kept of a run is this command's own log."""
    for path in sorted(out.glob("log-*.txt")):
        lines = path.read_text(errors="replace").splitlines()[-_NUM_LINES:]
        print(f"{path.name}:", *lines, sep="\n", file=sys.stderr)


def _fit(options: argparse.Namespace, stop: Path) -> int:
    """Run all processes, and return the first one's exit code; raises whatever Ray does if any was lost."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray.init()
    # After Ray has set its own: a job that is stopped gets SIGTERM, and the processes are told by a file.
    signal.signal(signal.SIGTERM, lambda *_: stop.touch())
    memory = {} if options.memory is None else {"memory": options.memory}
    resources = {"CPU": options.threads, **memory}
    if options.gpus:
        resources["GPU"] = options.gpus
    command = [str(options.config), "--out", str(options.out), "--home", str(options.home)]
    trainer = DataParallelTrainer(
        _run_process,
        train_loop_config={"command": command, "stop": str(stop), "threads": options.threads},
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=bool(options.gpus),
            resources_per_worker=resources,
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(storage_path=str(options.out / "ray")),
    )
    result: Any = trainer.fit()
    return int(result.return_value)


def _run_process(config: dict[str, Any]) -> int:
    """Run one of the processes, in a Ray worker, and return its exit code.

    Raises:
        RuntimeError: it was killed, or another one was.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    host, port = broadcast_from_rank_zero((ray.util.get_node_ip_address(), _free_port()))
    places = {
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": config["threads"],
    }
    log = Path(config["command"][2]) / f"log-{context.get_world_rank()}.txt"
    with log.open("a") as file:
        process = subprocess.Popen(
            [*_BOUND, sys.executable, "-m", "training", *config["command"]],
            env={**os.environ, **{name: str(value) for name, value in places.items()}},
            stdout=file,
            stderr=file,
        )
        code = _wait(process, Path(config["stop"]))
    if code not in _TOLD:
        raise RuntimeError(f"Process {context.get_world_rank()} ended with code '{code}': {log}")
    return code


def _wait(process: subprocess.Popen[bytes], stop: Path) -> int:
    is_told = False
    while (code := process.poll()) is None:
        if not is_told and stop.exists():
            process.terminate()  # it saves a checkpoint
            is_told = True
        time.sleep(_LOOK_SECONDS)
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
