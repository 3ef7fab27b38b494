"""Every setting of the service, read from ``HEADSTOCK_*`` variables; command line options override them."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from adapters.device import DeviceName
from adapters.dtype import DtypeName
from adapters.errors import EnvironmentProblem, InvalidRequest
from adapters.home import default_home
from adapters.packaged import DEFAULT_BACKBONE
from adapters.validation import first_problem
from service.bodies import MOST_ROWS
from service.jobs.orders import LauncherName
from service.jobs.signatures import signing_key

LOOPBACK = "127.0.0.1"
_PREFIX = "HEADSTOCK_"
_ALIKE = (
    0.85  # of a misspelt name; other programs' variables, as of Kubernetes' services, are less so
)


class Settings(BaseSettings):
    """One field a setting."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, extra="forbid")

    home: Path = Field(default_factory=default_home, description="Folder of all state.")
    backbone: str = Field(DEFAULT_BACKBONE, description="Packaged name, folder, or Hub id.")
    dtype: DtypeName = Field(
        "auto",
        description="auto measures which of fp32 and bf16 is faster; int8 and nf4 quantise the backbone.",
    )
    device: DeviceName = Field(
        "cpu",
        description="Where the server and 'headstock train' compute: cpu, cuda, or such as cuda:1.",
    )
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field(
        "127.0.0.1", description="127.0.0.1, 0.0.0.0 or ::."
    )
    port: int = Field(8000, ge=1024, le=65535, description="From 1024 on.")
    database_url: str | None = Field(
        None, description="Such as postgresql://user@host/headstock; SQLite under home if unset."
    )
    blob_url: str | None = Field(
        None,
        description="fsspec URL of bundles, such as s3://bucket/bundles; a folder under home if unset.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the engine; all cores if unset. One fewer suits short calls.",
    )
    max_row_tokens: int = Field(4096, ge=16, description="Longest prompt plus answer of one row.")
    step_tokens: int | None = Field(
        None, ge=16, description="Tokens that one pass of the backbone takes; 2048, on a GPU 8192."
    )
    chunk_tokens: int | None = Field(
        None,
        ge=16,
        description="Tokens of prompts in a pass, while other rows generate; 256, on a GPU 2048.",
    )
    fair_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of a pass, while one adapter is far behind another; 48, on a GPU 512.",
    )
    max_running: int = Field(64, ge=1, description="Rows that generate at once.")
    cache_bytes: int = Field(512 * 2**20, ge=2**20, description="Keys and values of running rows.")
    prefix_bytes: int = Field(
        128 * 2**20, ge=0, description="Part of it kept for rows to come that begin alike; 0: none."
    )
    bank_bytes: int = Field(
        1024 * 2**20, ge=2**20, description="Weights of adapters on the device."
    )
    bank_slots: int | None = Field(None, ge=1, description="Number of them; no bound if unset.")
    cache_disk_bytes: int = Field(
        20 * 2**30,
        ge=2**20,
        description="Bundles of a remote store on this machine's disk, about; the latest asked for stay.",
    )
    host_bytes: int = Field(
        1024 * 2**20, ge=0, description="Weights of adapters kept ready in main memory."
    )
    max_waiting_calls: int = Field(
        512, ge=1, description="Calls in flight beyond which 429 is sent."
    )
    max_waiting_tokens: int = Field(
        2**20,
        ge=16,
        description="Prompt and answer tokens in flight, and logprobs told of them, beyond which 429 is sent.",
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, le=3600, description="Time that a call gets if it does not say."
    )
    max_rows_per_call: int = Field(
        256,
        ge=1,
        le=MOST_ROWS,
        description="Rows in one call of /v1/predict: an input each, or several for one read in parts.",
    )
    max_body_bytes: int = Field(
        8 * 2**20, ge=1024, description="Largest body of a call, uploads excepted."
    )
    max_bundle_bytes: int = Field(
        256 * 2**20, ge=1024, description="Largest bundle that may be sent or fetched."
    )
    max_file_bytes: int = Field(
        512 * 2**20, ge=1024, description="Largest file of examples that may be sent."
    )
    job_workers: int = Field(
        1, ge=0, le=64, description="Workers that the server starts while there are jobs."
    )
    job_launcher: LauncherName = Field(
        "process",
        description="Where runs are started, for jobs that do not say; the server that takes them decides.",
    )
    container_image: str | None = Field(
        None,
        description="Image of runs in containers, from the Dockerfile's target train; no such launcher if unset.",
    )
    kubernetes_claim: str | None = Field(
        None,
        description="PersistentVolumeClaim that the workers' home lies on; launcher kubernetes needs it and the image.",
    )
    kubernetes_namespace: str = Field("default", description="Where runs are Jobs.")
    ray_address: str | None = Field(
        None,
        description="Dashboard of a Ray cluster, such as http://head:8265; no launcher ray if unset.",
    )
    run_threads: int = Field(1, ge=1, description="CPU threads of a run, for jobs that do not say.")
    job_timeout_seconds: int | None = Field(
        None, ge=1, description="Time that a run gets if its job does not say; no bound if unset."
    )
    max_active_jobs: int | None = Field(
        None,
        ge=1,
        description="Jobs of a namespace that may wait or run at once; no bound if unset.",
    )
    job_days: float | None = Field(
        90,
        gt=0,
        description="Days that records, logs and reports of ended jobs are kept; workers remove them.",
    )
    file_days: float | None = Field(
        None,
        gt=0,
        description="Days that files of examples are kept; until they are deleted if unset.",
    )
    webhook_url: str | None = Field(
        None, description="Address that the ends of jobs are posted to; none if unset."
    )
    webhook_secret: str | None = Field(
        None, description="What these posts are signed with: whsec_ and base64, or any text."
    )
    require_keys: bool = Field(
        False, description="Ask for API keys on 127.0.0.1 too; elsewhere they are asked for anyway."
    )
    allow_no_keys: bool = Field(
        False, description="Serve other addresses than 127.0.0.1 without API keys."
    )
    bundle_urls: str | None = Field(
        None,
        description="URLs under which the server may fetch bundles, with commas between; none if unset.",
    )
    drain_seconds: float = Field(10.0, ge=0, description="Time that running calls get at SIGTERM.")

    @field_validator("home")
    @classmethod
    def _expanded(cls, home: Path) -> Path:
        return home.expanduser()

    @model_validator(mode="after")
    def _can_sign(self) -> Settings:
        if self.webhook_url is None:
            return self
        if not self.webhook_url.startswith(("http://", "https://")):
            raise ValueError(
                f"webhook_url is '{self.webhook_url}'; it begins with https:// or http://."
            )
        try:
            has_key = bool(self.webhook_secret and signing_key(self.webhook_secret))
        except ValueError:
            has_key = False
        if not has_key:
            raise ValueError(
                "webhook_secret must be set with webhook_url: whsec_ and base64, or any text."
            )
        return self

    @property
    def needs_keys(self) -> bool:
        return self.require_keys or (self.host != LOOPBACK and not self.allow_no_keys)

    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'registry.db'}"

    def resolved_blob_url(self) -> str:
        return self.blob_url or str(self.home / "blobs")

    def trusted_urls(self) -> list[str]:
        return [url for part in (self.bundle_urls or "").split(",") if (url := part.strip())]

    def bundle_cache(self) -> Path:
        return self.home / "cache" / "bundles"


def load_settings(**given: object) -> Settings:
    """Return the settings; ``given`` values that are not None override the environment's.

    Raises:
        InvalidRequest: a value is out of its range, or there is no such setting.
    """
    try:
        settings = Settings.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        message, param = first_problem(error)
        raise InvalidRequest(f"Setting {message}", param=param) from error
    return settings


def misspelt_variables() -> list[str]:
    """Return a sentence about each variable of the environment that is nearly a setting, and does nothing."""
    names = [f"{_PREFIX}{name.upper()}" for name in Settings.model_fields]
    told = []
    for name in sorted(os.environ):
        bare = name.removeprefix(_PREFIX)
        if bare == name or name in names:
            continue
        alike = difflib.get_close_matches(bare, [n.removeprefix(_PREFIX) for n in names], 1, _ALIKE)
        told += [
            f"'{name}' is not a setting and does nothing. Was '{_PREFIX}{each}' meant?"
            for each in alike
        ]
    return told


def prepare_home(home: Path) -> None:
    """Make the home folder, and check that it can be written.

    Raises:
        EnvironmentProblem: it can't.
    """
    make_folder(home, hint="Set HEADSTOCK_HOME to a folder you can write.")


def make_folder(folder: Path, hint: str = "Choose a folder you can write.") -> None:
    """Make a folder, and check that it can be written.

    Raises:
        EnvironmentProblem: it can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EnvironmentProblem(f"Can't write to '{folder}': {error.strerror}. {hint}") from error
