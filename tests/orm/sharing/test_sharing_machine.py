"""A state machine over people, crews in fleets, watches, two scopes, both histories, with server keys and
without: what each person can read is compared with a plain model of what they may and must, and so is what
those open who kept all keys that they ever had.

`ENVELOPE_MACHINE_RUNS=2000` runs it so many times, of up to 20 steps, at random. Without it there are a
twentieth of these, of up to 8 steps, and always the same.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.orm.sharing.machine_world import World
from tests.orm.sharing.sharing_world import (
    COLUMNS,
    GRANTS,
    Crew,
    CrewSeat,
    Fleet,
    FleetPlace,
    Owner,
    Plain,
    Watch,
    WatchGuest,
    WatchSeat,
)

RUNS = os.environ.get("ENVELOPE_MACHINE_RUNS", "")
NAMES = ("ann", "bob", "cat", "dan")
MOST = {Crew: 3, Fleet: 2, Watch: 2}
"""Of groups: fewer meet more often."""
SERVER_KEY = b"\x05" * 32
BY = st.sampled_from([None, *NAMES])
ENDINGS = st.sampled_from(["commit", "commit", "commit", "commit", "rollback", "savepoint"])


class SharingMachine(RuleBasedStateMachine):
    """People come and go, by objects and by SQL, with keys at hand and without, and roll back."""

    @initialize(is_sealed=st.booleans())
    def start(self, is_sealed: bool) -> None:
        self.world = World(is_sealed)
        self.looked_at = self.settled_at = 0

    @property
    def plain(self) -> Plain:
        """The model."""
        return self.world.plain

    def _person(self, name: str | None) -> Owner | None:
        found = next((one for one in self.plain.people if one.name == name), None)
        return found if found is not None and found.is_enrolled else None

    @precondition(lambda self: not self.plain.people[-1].is_enrolled)
    @rule()
    def enroll(self) -> None:
        self.world.enroll(self.plain.people[-1])

    @rule(
        data=st.data(), kind=st.sampled_from([Crew, Fleet, Watch]), name=st.sampled_from(NAMES),
        keep=st.booleans(), has_provider=st.booleans(), ending=ENDINGS,
    )  # fmt: skip
    def found(
        self, data: st.DataObject, kind: type[Any], name: str, keep: bool, has_provider: bool, ending: str
    ) -> None:
        by = self._person(name)
        if by is None or len(self.plain.owners(kind)) >= MOST[kind]:
            return
        crews = [one for one in self.plain.owners(Crew) if self.plain.holds(by, one, surely=True)]
        if keep and by in self.world.kept:
            crews = [one for one in crews if one in self.world.kept[by].holds]
        choices = {
            Crew: [(CrewSeat, by)],
            Fleet: [(FleetPlace, crew) for crew in crews],
            Watch: [(WatchSeat, by), *((WatchGuest, crew) for crew in crews)],
        }[kind]
        if not choices:
            return
        grant, to = data.draw(st.sampled_from(choices))
        options = {"keep": keep, "has_provider": has_provider, "ending": ending}
        self.world.found(kind, by, grant, to, **options)

    @rule(
        data=st.data(), name=BY, keep=st.booleans(), ending=ENDINGS,
        grant=st.sampled_from(list(GRANTS)), way=st.sampled_from(["object", "collection"]),
    )  # fmt: skip
    def add(
        self, data: st.DataObject, name: str | None, keep: bool, ending: str, grant: type[Any], way: str
    ) -> None:
        of_kind, to_kind = GRANTS[grant]
        choices = [
            (of, to)
            for of in self.plain.owners(of_kind)
            for to in self.plain.owners(to_kind)
            if of.is_enrolled and not self.plain.is_there(grant, of, to)
        ]
        if choices:
            of, to = data.draw(st.sampled_from(choices))
            self.world.add(grant, of, to, self._person(name), keep=keep, ending=ending, way=way)

    @rule(
        data=st.data(), name=BY, keep=st.booleans(), ending=ENDINGS,
        way=st.sampled_from(["object", "collection", "sql", "bulk"]),
    )  # fmt: skip
    def remove(self, data: st.DataObject, name: str | None, keep: bool, ending: str, way: str) -> None:
        choices = self.plain.removable(self.plain.rights)
        if choices:
            right = data.draw(st.sampled_from(choices))
            self.world.remove(right, self._person(name), keep=keep, ending=ending, way=way)

    @rule(data=st.data(), name=BY, keep=st.booleans(), ending=ENDINGS, way=st.sampled_from(["object", "sql"]))
    def move(self, data: st.DataObject, name: str | None, keep: bool, ending: str, way: str) -> None:
        choices = []
        for right in self.plain.removable(self.plain.rights):
            if way == "sql" and (right.sure is None or right.is_void):
                # With row seals the one stays pending, and the other void when it says again what it said;
                # without them both are granted.
                continue
            of_kind, to_kind = GRANTS[right.grant]
            ends = [(of, right.to) for of in self.plain.owners(of_kind) if of.is_enrolled]
            ends += [(right.of, to) for to in self.plain.owners(to_kind)]
            choices += [(right, *pair) for pair in ends if not self.plain.is_there(right.grant, *pair)]
        if choices:
            right, of, to = data.draw(st.sampled_from(choices))
            self.world.move(right, of, to, self._person(name), keep=keep, ending=ending, way=way)

    @rule(data=st.data(), name=BY, keep=st.booleans(), ending=ENDINGS, way=st.sampled_from(["object", "sql"]))
    def delete(self, data: st.DataObject, name: str | None, keep: bool, ending: str, way: str) -> None:
        choices = [
            one
            for one in self.plain.groups
            if self.plain.is_kept_by_somebody([r for r in self.plain.rights if one in (r.of, r.to)], one)
        ]
        if choices:
            group = data.draw(st.sampled_from(choices))
            self.world.delete(group, self._person(name), keep=keep, ending=ending, way=way)

    @rule(
        data=st.data(), name=BY, keep=st.booleans(), ending=ENDINGS,
        how=st.sampled_from(["unlocked", "unlocked", "server", "write_only"]),
    )  # fmt: skip
    def write(self, data: st.DataObject, name: str | None, keep: bool, ending: str, how: str) -> None:
        by = self._person(name)
        if by is None and how == "unlocked":
            return
        owner = data.draw(st.sampled_from([one for one in self.plain.owners() if one.is_enrolled]))
        column = data.draw(st.sampled_from(COLUMNS[owner.kind]))
        by = by if how == "unlocked" else None
        self.world.write(owner, by, column=column, how=how, keep=keep, ending=ending)

    @rule(data=st.data(), name=st.sampled_from(NAMES), ending=ENDINGS)
    def rewrite(self, data: st.DataObject, name: str, ending: str) -> None:
        by = self._person(name)
        if by is None:
            return
        must = self.plain.must_read(by)
        choices = [
            (value, owner)
            for value in self.plain.values
            for owner in self.plain.owners(value.owner.kind)
            if value.text in must
            and (owner is by or self.plain.holds(by, owner, surely=True))
            and (value.owner is by or self.plain.holds(by, value.owner, surely=True))
        ]
        if choices:
            value, owner = data.draw(st.sampled_from(choices))
            self.world.rewrite(value, owner, by, ending=ending)

    @rule(name=st.sampled_from(NAMES), keep=st.booleans(), settle=st.booleans())
    def read(self, name: str, keep: bool, settle: bool) -> None:
        person = self._person(name)
        if person is not None:
            self.world.look(person, keep=keep, settle=settle)

    @rule(name=st.sampled_from(NAMES), settle=st.booleans())
    def keep(self, name: str, settle: bool) -> None:
        person = self._person(name)
        if person is not None and person not in self.world.kept:
            self.world.keep(person, settle=settle)

    @precondition(lambda self: self.world.kept)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.world.leave(data.draw(st.sampled_from(list(self.world.kept))))

    @rule(name=st.sampled_from(NAMES))
    def spy(self, name: str) -> None:
        person = self._person(name)
        if person is not None:
            self.world.spy(person)

    @rule(name=st.sampled_from(NAMES))
    def change_keys(self, name: str) -> None:
        person = self._person(name)
        if person is not None:
            self.world.change_keys(person)

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def shut_server_out(self, data: st.DataObject, name: str) -> None:
        by = self._person(name)
        choices = [
            one
            for one in self.plain.groups
            if one.has_provider and by is not None and self.plain.holds(by, one, surely=True)
        ]
        if choices and by is not None:
            self.world.shut_server_out(data.draw(st.sampled_from(choices)), by)

    @precondition(lambda self: any(one.has_provider for one in self.plain.groups))
    @rule()
    def settle_all(self) -> None:
        self.world.settle_all()

    @precondition(lambda self: self.plain.now >= self.settled_at + 4)
    @rule()
    def everybody_settles(self) -> None:
        self.world.everybody_settles()
        self.settled_at = self.plain.now

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "world") and self.plain.now != self.looked_at:
            self.looked_at = self.plain.now
            assert self.world.broken() == []

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestSharingMachine = SharingMachine.TestCase
TestSharingMachine.settings = settings(
    max_examples=int(RUNS or settings.default.max_examples),
    stateful_step_count=20 if RUNS else 8,
    deadline=None,
    derandomize=not RUNS,
    database=None,
    phases=[Phase.generate, Phase.shrink] if RUNS else [Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
