"""What becomes of a finished job's bundle: a version, and the alias that was asked for if it earns that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapters.errors import Conflict, InvalidRequest
from adapters.reference import check_name
from adapters.registry.notes import check_note, check_tags
from adapters.registry.promotion import Rule, check_rule
from adapters.registry.records import Version
from adapters.registry.registry import Registry
from service.jobs.orders import Register
from service.jobs.records import Job

JOB_TAG = "job"


def check_register(wanted: Register) -> None:
    """Raise `InvalidRequest` for what the registry would refuse after the training; ``param`` names the field."""
    checks: dict[str, Callable[[], object]] = {
        "alias": lambda: wanted.alias is None or check_name(wanted.alias, what="alias"),
        "note": lambda: check_note(wanted.note),
        "tags": lambda: check_tags({**wanted.tags, JOB_TAG: ""}),
    }
    for field, check in checks.items():
        try:
            check()
        except InvalidRequest as error:
            error.param = f"register.{field}"
            raise
    if (gate := wanted.promote_if) is not None:
        check_rule(Rule(gate.metric, gate.min_gain))


def register_result(registry: Registry, job: Job, bundle: Path) -> tuple[str, str]:
    """Add a bundle as a version, and return its reference and a sentence on what was done.

    Done twice, as after a worker's death in between, it gives the same: a bundle's digest has one number.

    Raises:
        Conflict: the name is another task's by now.
        InvalidBundle: the bundle is not sound.
    """
    wanted = job.order.register_as
    version = registry.create_version(
        job.plan.adapter,
        bundle,
        note=wanted.note if wanted else "",
        tags={**(wanted.tags if wanted else {}), JOB_TAG: job.id},
        namespace=job.namespace,
    )
    return (
        f"{version.name}:{version.number}",
        f"Registered '{version.name}:{version.number}'" + _alias(registry, job, version),
    )


def _alias(registry: Registry, job: Job, version: Version) -> str:
    """Move the alias that the order names, if any; returns what to say of it."""
    alias, wanted = job.order.alias_wanted(), job.order.register_as
    if alias is None or wanted is None:
        return ""
    if wanted.promote_if is None:
        registry.set_alias(version.name, alias, version.number, namespace=job.namespace)
        return f"; '{alias}' points at it"
    rule = Rule(wanted.promote_if.metric, wanted.promote_if.min_gain)
    try:
        done = registry.promote(version.name, alias, version.number, rule, namespace=job.namespace)
    except Conflict as error:
        return f"; '{alias}' was not moved: {error.message}"
    moved = "points at it" if done.is_moved else "was not moved"
    return f"; '{alias}' {moved}: {done.comparison.reason}"
