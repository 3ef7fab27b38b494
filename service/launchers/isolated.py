"""What runs in containers of any kind have in common: how they are called, what they see, and who they are."""

from __future__ import annotations

from service.launchers.base import RunOrder

# In the container: memory, with the prepared backbones mounted in it. No volume of the image, which keeps its owner.
HOME = "/run/headstock"
USER = 10001  # the image's own; runs of a worker that is root are this user's
SCRATCH_BYTES = (
    256 * 2**20
)  # of kernels and temporary files; what they take counts as the run's memory
# The log is a file of the run's folder, so that it outlives the container and whoever started it.
_COMMAND = 'log=$1; shift; exec python -m training "$@" >>"$log" 2>&1'


def entrypoint() -> list[str]:
    return ["sh", "-c", _COMMAND, "sh"]


def arguments(run: RunOrder) -> list[str]:
    """Return what follows the entrypoint."""
    folder = str(run.folder)
    return [f"{folder}/log.txt", f"{folder}/{run.config_name}", "--out", folder, "--home", HOME]


def environment(threads: int) -> dict[str, str]:
    return {
        "HEADSTOCK_HOME": HOME,
        "HOME": HOME,
        "USER": "headstock",  # torch asks for a name, which a user of another machine has not in the image
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }
