"""Public figures on how often each value occurs: what an attacker knows before seeing the database."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class PublicValues:
    """Values of a column and how often each of them occurs among people at large: a census, a list of first
    names, the domains of e-mail addresses.

    Attributes:
        values: the values, the commonest first.
        shares: the share of each; together 1.
    """

    values: tuple[Any, ...] = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, weights: Mapping[Any, float]) -> PublicValues:
        """Public figures from the weight of each value: counts or shares.

        Raises:
            ConfigurationError: there is no value, or a weight is no positive number.
        """
        pairs = sorted(weights.items(), key=lambda pair: pair[1], reverse=True)
        if not pairs or not all(math.isfinite(weight) and weight > 0 for _, weight in pairs):
            raise ConfigurationError("Public figures: each value with its weight, a number above 0.")
        whole = math.fsum(weight for _, weight in pairs)
        return cls(tuple(value for value, _ in pairs), tuple(weight / whole for _, weight in pairs))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> PublicValues:
        """Public figures from a file: lines of `value,weight`, or a JSON object of values and weights.

        Raises:
            ConfigurationError: the file cannot be read, or has something else in it.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {type(error).__name__}.") from None
        pairs = _from_json(text) if text.lstrip().startswith("{") else _from_csv(text)
        try:
            return cls.of(pairs)
        except (ConfigurationError, TypeError):
            raise ConfigurationError(
                f"{path} holds no public figures: write a line `value,weight` for each value, "
                "with a weight above 0, or a JSON object."
            ) from None

    def __len__(self) -> int:
        return len(self.values)


def _from_json(text: str) -> dict[Any, float]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _from_csv(text: str) -> dict[Any, float]:
    pairs: dict[Any, float] = {}
    for number, row in enumerate(_rows(text)):
        weight = _number(row[-1])
        if weight is None and number == 0:
            continue  # the names of the columns
        if weight is None or len(row) != 2:
            return {}
        pairs[row[0]] = pairs.get(row[0], 0.0) + weight
    return pairs


def _rows(text: str) -> Iterable[list[str]]:
    return (row for row in csv.reader(text.splitlines()) if row)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
