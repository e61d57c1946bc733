"""The reports of a campaign: the standing of its owners, and their fate at the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple


@dataclass(frozen=True)
class CampaignStatus:
    """The number of owners in each standing.

    Each owner is counted once. `hardened` is an extra count of some owners in `claimed`.

    Attributes:
        owners: all owners.
        unprovided: owners without keys.
        unclaimed: owners with keys that the campaign's key opens, and no secret of their own.
        waiting: owners who chose a secret, but were not released by the custodians of the offline key yet.
        claimed: owners with a secret of their own, set by a claim.
        hardened: claimed owners with newer keys, which the campaign's key never opened.
        enrolled: owners with a secret of their own from the beginning.
        shared: owners with keys that were granted to others, as a group's keys are to its members.
        other: owners with keys that none of these ways opens: held by another provider, or shredded.
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
    """The counts at the closing of a campaign, and the steps that were carried out.

    Attributes:
        provider, reference: the campaign, and its key.
        policy: the requested fate of unclaimed owners.
        classes: the counts at closing, by the name of each class.
        kept, rewrapped, shredded: the number of unclaimed or waiting owners by their fate.
        destroyed: whether the key was destroyed.
        by_hand: the step that a person still has to take; None if there is none.
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
    """The number of released owners, and of owners that were refused because of errors in their rows."""

    released: int
    refused: int
