"""What a campaign tells: how many owners stand where, and what became of them at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple


@dataclass(frozen=True)
class CampaignStatus:
    """How many owners stand where; each is counted once, but for `hardened`, which counts some of `claimed`.

    Attributes:
        owners: all of them.
        unprovided: without keys.
        unclaimed: the campaign's key opens them, and no secret of theirs does.
        waiting: they chose a secret, and the custodians of the offline key have not released them.
        claimed: with a secret of their own, by a claim.
        hardened: those of them with newer keys, which the campaign's key never opened.
        enrolled: with a secret of their own from the beginning.
        shared: opened by others who were granted their keys, as a group is by its members.
        other: with keys that none of these opens: held by another provider, or shredded.
    """

    owners: int = 0
    unprovided: int = 0
    unclaimed: int = 0
    waiting: int = 0
    claimed: int = 0
    hardened: int = 0
    enrolled: int = 0
    shared: int = 0
    other: int = 0

    def __add__(self, more: CampaignStatus) -> CampaignStatus:
        return CampaignStatus(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))


@dataclass(frozen=True)
class CampaignReport:
    """What was found when a campaign was closed, and what was done.

    Attributes:
        provider, reference: the campaign, and its key.
        policy: what was to be done with the unclaimed.
        classes: the counts at closing, by the name of each class.
        kept, rewrapped, shredded: what became of those who were unclaimed or waiting.
        destroyed: whether the key was destroyed.
        by_hand: what is left for a person to do; None if nothing is.
    """

    provider: str
    reference: str
    policy: str
    classes: dict[str, CampaignStatus] = field(default_factory=dict)
    kept: int = 0
    rewrapped: int = 0
    shredded: int = 0
    destroyed: bool = False
    by_hand: str | None = None

    @property
    def total(self) -> CampaignStatus:
        """The counts of all classes together."""
        return sum(self.classes.values(), CampaignStatus())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "total": asdict(self.total)}

    def as_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        total = self.total
        lines = [
            f"Campaign {self.provider!r}, closed with policy {self.policy!r}",
            f"  owners     {total.owners}",
            f"  claimed    {total.claimed}, of them hardened {total.hardened}",
            f"  enrolled   {total.enrolled}",
            f"  shared     {total.shared}",
            f"  unclaimed  {total.unclaimed + total.waiting}, of them waiting {total.waiting}",
            f"             kept {self.kept}, rewrapped {self.rewrapped}, shredded {self.shredded}",
            f"  no keys    {total.unprovided}",
            f"  key        {self.reference}: {'destroyed' if self.destroyed else 'NOT destroyed'}",
        ]
        return "\n".join([*lines, f"  by hand    {self.by_hand}"] if self.by_hand else lines)


class Released(NamedTuple):
    """How many owners were released, and how many were not, since their rows are not as they should be."""

    released: int
    refused: int
