"""What a hyper-parameter search draws from: the `search` section of a model in a recipe. No torch, no ray here."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

import numpy as np
from pydantic import Field, JsonValue, model_validator

from infra.config import Settings, canonical_json
from train.settings import OPERATIONAL

_CORNERS = 1024  # of a larger space only so many are tried out beforehand, and whatever is drawn
_REFUSED = {
    "config.model": "another architecture is another model; list it as a baseline",
    **{f"training.{name}": "it is how a run is carried out, not what it learns" for name in OPERATIONAL},
}


class Values(Settings):
    """The values of one setting: exactly one of the four."""

    choice: tuple[JsonValue, ...] | None = Field(None, min_length=1)
    """These, each as likely as the others."""
    uniform: tuple[float, float] | None = None
    """Any number between the two."""
    log: tuple[float, float] | None = None
    """Any number between the two, its logarithm uniform; both above 0."""
    integer: tuple[int, int] | None = None
    """Any whole number from the first to the second, both included."""

    @model_validator(mode="after")
    def _one_kind(self) -> Values:
        if sum(value is not None for value in (self.choice, self.uniform, self.log, self.integer)) != 1:
            raise ValueError("give exactly one of choice, uniform, log, integer")
        if self.choice is None and self.ends[0] >= self.ends[1]:
            raise ValueError(f"[{self.ends[0]}, {self.ends[1]}]: the first has to be less than the second")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError(f"log [{self.log[0]}, {self.log[1]}]: both have to be above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The smallest and the largest value; of a choice, all."""
        return self.choice or self.integer or self.uniform or self.log or ()

    def draw(self, generator: np.random.Generator) -> Any:
        """One value; of a range of real numbers to four digits, which is what one would write into a recipe."""
        if self.choice is not None:
            return self.choice[int(generator.integers(len(self.choice)))]
        low, high = self.ends
        if self.integer is not None:
            return int(generator.integers(low, high, endpoint=True))
        if self.log is not None:
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            drawn = generator.uniform(low, high)
        return min(max(float(f"{drawn:.4g}"), low), high)


class SearchSettings(Settings):
    """A random search over a model's settings, decided by the validation split; the best trial is the model.

    >>> SearchSettings(trials=4, space={"training.learning_rate": {"log": [1e-4, 1e-2]}}).parallel
    1
    """

    trials: int = Field(ge=1)
    """Configurations to draw; one that is drawn twice is trained once."""
    space: dict[str, Values] = Field(min_length=1)
    """Setting (`config.dropout`, `training.learning_rate`) -> its values; the others stay as the recipe has them."""
    seed: int = Field(0, ge=0)
    """Of the draws. The first trials are the same however many there are, so more can be added later."""
    parallel: int = Field(1, ge=1)
    """Trials at a time; the cluster needs the CPUs of all of them."""
    epochs_first: int | None = Field(None, ge=1)
    """Successive halving (ASHA): at this epoch, and at 4, 16, ... times it, a trial that is not among the best quarter
    of those seen there is stopped; null = all train to their end. A model of several stages needs them over by then.
    With trials in parallel, who was seen there depends on timing."""

    @model_validator(mode="after")
    def _searchable(self) -> SearchSettings:
        for name in self.space:
            if name in _REFUSED:
                raise ValueError(f"space: {name} cannot be searched: {_REFUSED[name]}")
        return self

    def drawn(self) -> list[dict[str, Any]]:
        """The configurations, each as {setting: value}."""
        found: dict[str, dict[str, Any]] = {}
        for trial in range(self.trials):
            generator = np.random.default_rng([self.seed, trial])
            values = {name: self.space[name].draw(generator) for name in sorted(self.space)}
            found.setdefault(canonical_json(values), values)
        return list(found.values())

    def corners(self) -> Iterator[dict[str, Any]]:
        """Every combination of the settings' ends."""
        names = sorted(self.space)
        for values in islice(product(*(self.space[name].ends for name in names)), _CORNERS):
            yield dict(zip(names, values, strict=True))


def put(sections: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with `values` at their dotted names; ValueError names one that is not there.

    >>> put({"config": {"base": {"dropout": 0.1}}}, {"config.base.dropout": 0.2})
    {'config': {'base': {'dropout': 0.2}}}
    """
    out: dict[str, Any] = copy.deepcopy(dict(sections))
    for name, value in values.items():
        *parents, last = name.split(".")
        node: Any = out
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or not parents or last not in node:
            raise ValueError(f"search.space: {name!r} is no setting of this model")
        node[last] = value
    return out


def described(values: Mapping[str, Any]) -> str:
    """A configuration in one line.

    >>> described({"config.dropout": 0.1, "training.batch_size": 64})
    'config.dropout=0.1 training.batch_size=64'
    """
    return " ".join(f"{name}={value}" for name, value in values.items())
