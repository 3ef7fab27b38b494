"""What may be ordered: the body of ``POST /v1/fine_tuning/jobs``, OpenAI's fields and ours beside them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapters.dtype import DtypeName
from adapters.errors import InvalidRequest
from adapters.reference import DEFAULT_ALIAS, check_name
from adapters.validation import first_problem
from service.bodies import Body
from training.contract import (
    BackTranslationSettings,
    DataSettings,
    FitSettings,
    LoraSettings,
    RunConfig,
)

LauncherName = Literal["process", "container", "ray", "kubernetes"]
MOST_PAIRS = 16


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Hyperparameters(Strict):
    """OpenAI's three."""

    n_epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"


class Supervised(Strict):
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Method(Strict):
    """How to train; of OpenAI's methods, the one that learns from examples with answers."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Field(default_factory=Supervised)


class TaskOrder(DataSettings):
    """What is learned from the files: the task, its options, and all of `DataSettings` but the files' places."""

    type: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    test_file: str | None = None


class TrainingOrder(FitSettings):
    """The optimisation, as `FitSettings`, and what else a run has of its own."""

    dtype: DtypeName = "auto"
    must_learn: bool = True
    evaluate_untrained: bool = False


class Resources(Strict):
    """Where a run is started, and the most that it may take."""

    launcher: LauncherName | None = None
    timeout_seconds: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1, le=1024)
    memory_bytes: int | None = Field(None, ge=64 * 2**20)
    gpus: int = Field(0, ge=0, le=1)  # of each worker: a process computes on one
    workers: int = Field(1, ge=1, le=64)
    priority: int = Field(0, ge=-100, le=100)


class PromoteIf(Strict):
    metric: str | None = None
    min_gain: float = 0.0


class Register(Strict):
    """Where the finished adapter goes: a new version of ``name``, and an alias if it is set."""

    name: str
    alias: str | None = None
    promote_if: PromoteIf | None = None
    note: str = ""
    tags: dict[str, str] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _may_name(cls, name: str) -> str:
        try:
            return check_name(name, what="adapter name")
        except InvalidRequest as error:
            raise ValueError(error.message) from error


class JobOrder(Body):
    """An order to train an adapter."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=300)
    training_file: str
    validation_file: str | None = None
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, lt=2**31)
    metadata: dict[str, str] | None = None
    method: Method = Field(default_factory=Method)
    hyperparameters: Hyperparameters | None = None  # where older clients put them
    integrations: list[Any] | None = Field(None, max_length=0)
    task: TaskOrder = Field(default_factory=TaskOrder)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    training: TrainingOrder = Field(default_factory=TrainingOrder)
    resources: Resources = Field(default_factory=Resources)
    register_as: Register | None = Field(None, alias="register")

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, pairs: dict[str, str] | None) -> dict[str, str] | None:
        if pairs and len(pairs) > MOST_PAIRS:
            raise ValueError(f"at most {MOST_PAIRS} pairs are kept")
        if any(len(key) > 64 or len(value) > 512 for key, value in (pairs or {}).items()):
            raise ValueError("keys have at most 64 characters, values 512")
        return pairs

    @field_validator("task")
    @classmethod
    def _files_stand_elsewhere(cls, task: TaskOrder) -> TaskOrder:
        if task.train or task.validation or task.test:
            raise ValueError("name files as training_file, validation_file and task.test_file")
        translation = task.augmentation and task.augmentation.back_translation
        # By its value: an order that is read from the queue has all fields set.
        if translation and translation.url != BackTranslationSettings.model_fields["url"].default:
            raise ValueError("a job's back-translation asks no other server; leave its url out")
        return task

    def files(self) -> list[str]:
        """Return the ids of all files that the order names, each once."""
        named = (self.training_file, self.validation_file, self.task.test_file)
        return list(dict.fromkeys(file for file in named if file))

    @property
    def chosen(self) -> Hyperparameters:
        return self.hyperparameters or self.method.supervised.hyperparameters

    def adapter_name(self, job: str) -> str:
        """Return what the finished adapter is called: as ordered, else by the suffix, else by the job."""
        if self.register_as is not None:
            return self.register_as.name
        plain = re.sub(r"[^a-z0-9._-]+", "-", (self.suffix or "").lower()).strip("-._")
        return plain[:64] or job

    def alias_wanted(self) -> str | None:
        if self.register_as is None:
            return None
        if self.register_as.promote_if is not None:
            return self.register_as.alias or DEFAULT_ALIAS
        return self.register_as.alias

    def run_config(
        self, files: dict[str, str], backbone: str, task: str, parent: str | None
    ) -> RunConfig:
        """Return what a run is told.

        Args:
            files: where the files of the order are, by their ids.
            backbone, parent: what ``model`` stands for.
        """
        data = self.task.model_dump(exclude={"type", "options", "test_file"}, exclude_unset=True)
        named = {
            "train": self.training_file,
            "validation": self.validation_file,
            "test": self.task.test_file,
        }
        data |= {name: files[file] for name, file in named.items() if file}
        own = {"dtype", "must_learn", "evaluate_untrained"}
        fit = self.training.model_dump(exclude=own, exclude_unset=True)
        fit |= _fit_changes(self.chosen)
        if self.seed is not None:
            fit["seed"] = self.seed
        fields = {
            "task": task,
            "options": self.task.options,
            "backbone": backbone,
            "data": data,
            "lora": self.lora.model_dump(),
            "fit": fit,
            "parent": parent,
            "device": "cuda" if self.resources.gpus else "cpu",
            **self.training.model_dump(include=own),
        }
        try:
            return RunConfig.model_validate(fields)
        except ValidationError as error:
            message, param = first_problem(error)
            raise InvalidRequest(message, param=param) from error


class JobPlan(Strict):
    """What an order came to when it was checked, and stays.

    Args:
        backbone: fingerprint.
        parent: ``name:version`` whose training goes on; None starts anew.
        adapter: name that the result gets.
        launcher: that runs it.
        rows: of each split; ``warnings``: what the data gate said beside errors.
    """

    task: str
    backbone: str
    adapter: str
    launcher: LauncherName = "process"
    parent: str | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


def _fit_changes(chosen: Hyperparameters) -> dict[str, Any]:
    given = {
        "epochs": chosen.n_epochs,
        "batch_rows": chosen.batch_size,
        "rate_factor": chosen.learning_rate_multiplier,
    }
    return {name: value for name, value in given.items() if value != "auto"}
