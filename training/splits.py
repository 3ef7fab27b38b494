"""One file's rows divided into training, validation and test rows: stratified, seeded, and the same in any order."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.errors import InvalidData
from adapters.tasks.question_answering import AnsweringRequest
from adapters.tasks.text_classification import ClassificationTarget
from training.data import Example, content_key, plain

_Group = list[Example]  # rows that must stay on one side


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows by what they are for; none stands in two of them."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def parts(self) -> dict[str, list[Example]]:
        """Return the splits that hold rows, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in named.items() if rows}


def split_examples(
    examples: Sequence[Example], *, validation_share: float, test_share: float, seed: int
) -> Splits:
    """Return the examples divided, each split in the file's order.

    Where a row goes depends on the set of rows and the seed, never on their order; the test split also not on
    ``validation_share``. Rows with the same input, and questions on the same context, stay together. Each class
    gives its share to within one row (with repeated rows: to within the largest group), and keeps one in training.

    Raises:
        InvalidData: a share above zero gives no row.
    """
    strata = _strata(examples, seed)
    sizes = {label: sum(map(len, groups)) for label, groups in strata.items()}
    test = _draw(strata, _quotas(sizes, test_share))
    validation = _draw(strata, _quotas(sizes, validation_share))
    for name, share, drawn in (
        ("validation", validation_share, validation),
        ("test", test_share, test),
    ):
        if share > 0 and not drawn:
            raise InvalidData(
                f"A {name} share of '{share}' of {len(examples)} rows gives no row. Raise it, or add examples.",
                param=f"data.{name}_share",
            )
    return Splits(
        [e for e in examples if id(e) not in test | validation],
        [e for e in examples if id(e) in validation],
        [e for e in examples if id(e) in test],
    )


def _strata(examples: Sequence[Example], seed: int) -> dict[str, list[_Group]]:
    """Return the groups by label, in an order that seed and content decide."""
    groups: dict[str, _Group] = defaultdict(list)
    for example in examples:
        groups[_group_key(example)].append(example)
    strata: dict[str, list[_Group]] = defaultdict(list)
    for key in sorted(groups, key=lambda key: _hash(seed, key)):
        strata[min(_label(example) for example in groups[key])].append(groups[key])
    return dict(sorted(strata.items(), key=lambda item: _hash(seed, item[0])))


def _draw(strata: Mapping[str, list[_Group]], quotas: Mapping[str, int]) -> set[int]:
    """Take up to a quota of rows out of each stratum, but never its last group, and return the rows' ids."""
    drawn: set[int] = set()
    for label, groups in strata.items():
        left: list[_Group] = []
        room = quotas[label]
        for position, group in enumerate(groups, start=1):
            is_last = not left and position == len(groups)
            if len(group) <= room and not is_last:
                room -= len(group)
                drawn |= {id(example) for example in group}
            else:
                left.append(group)
        groups[:] = left
    return drawn


def _quotas(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Return each stratum's share in whole rows that add up to the share of all rows, by largest remainder."""
    exact = {label: share * size for label, size in sizes.items()}
    quotas = {label: int(value) for label, value in exact.items()}
    missing = round(sum(exact.values())) - sum(quotas.values())
    for label in sorted(exact, key=lambda label: quotas[label] - exact[label])[:missing]:
        quotas[label] += 1
    return quotas


def _group_key(example: Example) -> str:
    request = example.request
    if isinstance(request, AnsweringRequest):
        return plain(request.context)  # a context seen in training gives its other questions away
    return content_key(example)


def _label(example: Example) -> str:
    target = example.target
    return "\n".join(sorted(target.names())) if isinstance(target, ClassificationTarget) else ""


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
