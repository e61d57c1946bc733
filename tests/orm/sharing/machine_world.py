"""The world of the state machine: the real database and a plain model beside it."""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Engine, StaticPool, create_engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import EnvelopeError, LockedError, UnlockedSession, enforce_foreign_keys
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import OpenedKey
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.invariants import violations
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from tests.orm.sharing.sharing_world import (
    COLUMNS,
    PAGES,
    WORLD_OWNERS,
    Crew,
    CrewSeat,
    Fleet,
    FleetPlace,
    Owner,
    Person,
    Plain,
    Right,
    Value,
    Watch,
    WatchSeat,
    WorldBase,
)

if TYPE_CHECKING:
    from collections.abc import Callable
from tests.orm.sharing.machine_setting import COMPILED, NAMES, TEMPLATES, Kept, make_envelope, secret_of

SHARED = create_engine("sqlite://", poolclass=StaticPool)


class World:
    """The database, and those who come to it; in step with the plain model of what they may."""

    def __init__(self, is_sealed: bool) -> None:
        self.plain = Plain()
        self.envelope = make_envelope(is_sealed)
        self.engine = self._start(is_sealed)
        self.kept: dict[Owner, Kept] = {}
        self.memory: dict[Owner, dict[UUID, tuple[bytes, OpenedKey]]] = {}
        """Every key that each one ever opened."""
        self.count = 0
        people = [Owner(Person, number, name) for number, name in enumerate(NAMES, 1)]
        people[-1].is_enrolled = False
        ann, bob, _, _ = self.plain.people = people
        crew, fleet, watch = self.plain.groups = [
            Owner(kind, 1, f"{kind.__name__} 1") for kind in (Crew, Fleet, Watch)
        ]
        for grant, of, to in [
            (CrewSeat, crew, ann), (CrewSeat, crew, bob), (FleetPlace, fleet, crew), (WatchSeat, watch, ann),
        ]:  # fmt: skip
            self.plain.rights.append(Right(grant, of, to, 0, 0, (of, to)))

    def _start(self, is_sealed: bool) -> Engine:
        """Four people, one of them without keys; two in a crew, which is in a fleet; and a watch of one."""
        # For each run a database that no session of a run before can reach, however it ended. They share a
        # dialect, and so the compiled statements.
        fresh = Engine(SHARED.pool.recreate(), SHARED.dialect, SHARED.url)
        enforce_foreign_keys(fresh)
        engine = fresh.execution_options(compiled_cache=COMPILED)
        if is_sealed not in TEMPLATES:
            WorldBase.metadata.create_all(engine)
            with Session(engine) as session:
                people = [Person(name=name) for name in NAMES]
                session.add_all(people)
                for person, name in zip(people[:3], NAMES, strict=False):
                    self.envelope.enroll(session, person, secret=f"the secret of {name}")
                session.commit()
                with self.envelope.unlock(session, people[0], secret=f"the secret of {NAMES[0]}"):
                    groups = [Crew(), Fleet(), Watch()]
                    for group in groups:
                        self.envelope.enroll(session, group)
                    session.add_all([
                        CrewSeat(of_id=1, to_id=1), CrewSeat(of_id=1, to_id=2),
                        FleetPlace(of_id=1, to_id=1), WatchSeat(of_id=1, to_id=1),
                    ])  # fmt: skip
                    session.commit()
            with engine.connect() as connection:
                TEMPLATES[is_sealed] = connection.connection.driver_connection.serialize()  # type: ignore[union-attr]
        with engine.connect() as connection:
            connection.connection.driver_connection.deserialize(TEMPLATES[is_sealed])  # type: ignore[union-attr]
        return engine

    # Who comes to it

    def come(self, by: Owner | None, work: Callable[[Session], None], *, keep: bool = False) -> None:
        """Run this in a session that somebody has unlocked: just now, or long ago if they keep one open."""
        kept = self.kept.get(by) if by is not None and keep else None
        if kept is not None:
            kept.context.run(work, kept.session)
            return
        with Session(self.engine) as session:
            self.envelope.attach(session)
            if by is None:
                work(session)
                return
            with self.unlock(session, by) as unlocked:
                work(session)
                self.remember(by, unlocked)

    def unlock(self, session: Session, person: Owner) -> UnlockedSession:
        """Somebody's unlocked session, not entered yet."""
        return self.envelope.unlock(session, session.get_one(Person, person.id), secret=secret_of(person))

    def change(
        self,
        change: Callable[[Session], None],
        by: Owner | None = None,
        *,
        keep: bool = False,
        ending: str = "commit",
    ) -> bool:
        """Change something; tells whether that was committed. What was rolled back leaves no trace."""

        def work(session: Session) -> None:
            try:
                if ending == "savepoint":
                    with session.begin_nested() as nested:
                        change(session)
                        session.flush()
                        nested.rollback()
                else:
                    change(session)
                    session.flush()
                    session.commit() if ending == "commit" else session.rollback()
            except BaseException:
                session.rollback()
                raise
            if ending != "commit" and by is not None:
                self.compare(by, self.read(session), keep=keep)
            session.commit()

        self.come(by, work, keep=keep)
        return ending == "commit"

    def passed(self, by: Owner | None = None, *, keep: bool = False, by_flush: bool = True) -> None:
        """Something is about to be noted as committed, by a flush of somebody who unlocked for it."""
        self.plain.now += 1
        if by is not None and by_flush and not (keep and by in self.kept):
            self.plain.settled_by(by)

    def noted(self) -> None:
        """It is noted: who keeps keys open may have lost the right to some."""
        self.plain.came_to_pass()
        for person, kept in self.kept.items():
            kept.holds = {one for one in kept.holds if self.plain.holds(person, one, surely=True)}
            kept.holds &= set(self.plain.owners())

    # What they read

    def read(self, session: Session) -> set[str]:
        """What opens in a session."""
        session.expire_all()
        found = set()
        for kind, page in PAGES.items():
            for row in session.scalars(select(page)):
                for column in COLUMNS[kind]:
                    try:
                        value = getattr(row, column)
                    except LockedError:
                        continue
                    if value is not None:
                        found.add(value)
        return found

    def compare(self, person: Owner, found: set[str], *, keep: bool = False) -> None:
        """What somebody reads with what they must and may."""
        kept = self.kept.get(person) if keep else None
        there = {one.text for one in self.plain.values}
        must = self.plain.must_read(person) if kept is None else kept.reads & there
        may = self.plain.ever.get(person, set()) & there

        assert must - found == set(), f"{person} cannot read what they must"
        assert found - may == set(), f"{person} reads what they may not"

    def look(self, person: Owner, *, keep: bool = False, settle: bool = False) -> None:
        """Somebody comes and reads everything."""

        def work(session: Session) -> None:
            if settle:
                self.envelope.settle(session)
            self.compare(person, self.read(session), keep=keep)
            session.commit()

        if settle:
            self.passed(person, keep=keep)
        self.come(person, work, keep=keep)
        if settle:
            self.noted()

    # What they keep

    def remember(self, person: Owner, unlocked: UnlockedSession) -> None:
        """Keep every key that somebody can open."""
        keyring, memory = unlocked.keyring, self.memory.setdefault(person, {})
        for owner in keyring:
            for key in keyring.keys_of(owner):
                if key.key_id not in memory:
                    opened = keyring.open(key.key_id)
                    if opened is not None:
                        memory[key.key_id] = (owner, OpenedKey(opened.stored, KeyBytes(opened.key.buffer)))

    def before_removal(self, rights: list[Right]) -> None:
        """Whoever is about to lose something keeps what they have."""
        for person in self.plain.people:
            if person.is_enrolled and any(
                one.to is person or self.plain.holds(person, one.to, surely=False) for one in rights
            ):
                with Session(self.engine) as session, self.unlock(session, person) as unlocked:
                    unlocked.follow_all(session)
                    self.remember(person, unlocked)
                    session.commit()

    def spy(self, person: Owner) -> None:
        """With everything that somebody kept, and everything that is in the tables, no value opens that was
        written while they had no right to it."""
        keyring, opened = Keyring(), set()
        with Session(self.engine) as session:
            self.envelope.attach(session)
            names, seals, places = Names(session), self.envelope.policy.seals, []
            for owner, key in self.memory.get(person, {}).values():
                keyring.add(owner, [OpenedKey(key.stored, KeyBytes(key.key.buffer))])
            for one in self.plain.owners():
                owner_class = owner_class_of(one.kind.__table__)
                assert owner_class is not None
                place = names.place(owner_class, (one.id,))
                rows = KeyStore(session, owner_class, seals).load([(one.id,)])
                keyring.add_stored(place.owner, [row.stored for row in rows])
                places.append(place)
            follow_grants(Desk(session, self.envelope.policy), keyring, places)
            session.commit()
        with self.engine.connect() as connection:
            for value in self.plain.values:
                table = PAGES[value.owner.kind].__tablename__
                blob = connection.exec_driver_sql(
                    f"SELECT {value.column} FROM {table} WHERE id = ?", (value.row,)
                ).scalar_one()
                try:
                    is_open = keyring.open(UUID(bytes=blob[1:17])) is not None
                except EnvelopeError:
                    is_open = False
                if is_open:
                    opened.add(value.text)
        keyring.wipe()
        may = self.plain.ever.get(person, set())

        assert opened - may == set(), f"{person} kept what opens this"

    # What they do

    def enroll(self, person: Owner) -> None:
        """Somebody gets keys."""

        def work(session: Session) -> None:
            self.envelope.enroll(session, session.get_one(Person, person.id), secret=secret_of(person))

        self.change(work)
        self.passed()
        person.is_enrolled = True
        self.noted()

    def found(self, kind: type[Any], by: Owner, grant: type[Any], to: Owner, **options: Any) -> Owner | None:
        """Somebody founds a group, and puts in somebody first; the group, if it is committed."""
        keep, ending = options.get("keep", False), options.get("ending", "commit")
        made: list[int] = []

        def work(session: Session) -> None:
            group = kind()
            provider = "server" if options.get("has_provider") else None
            self.envelope.enroll(session, group, provider=provider)
            made.append(group.id)
            session.add(grant(of_id=group.id, to_id=to.id))

        if not self.change(work, by, keep=keep, ending=ending):
            return None
        self.passed(by, keep=keep)
        self.count += 1
        group = Owner(kind, made[0], f"{kind.__name__} {made[0]}", True, options.get("has_provider", False))
        now = self.plain.now
        self.plain.groups.append(group)
        self.plain.rights.append(Right(grant, group, to, now, now, (group, to)))
        self.noted()
        if by in self.kept and keep:
            self.kept[by].holds.add(group)
        return group

    def add(
        self,
        grant: type[Any],
        of: Owner,
        to: Owner,
        by: Owner | None = None,
        *,
        keep: bool = False,
        ending: str = "commit",
        way: str = "object",
    ) -> None:
        """A granting row is added."""

        def work(session: Session) -> None:
            if way == "collection" and grant is CrewSeat:
                crew = session.get_one(Crew, of.id)
                crew.seats.append(CrewSeat(to_id=to.id))
            else:
                session.add(grant(of_id=of.id, to_id=to.id))

        if self.change(work, by, keep=keep, ending=ending):
            self.passed(by, keep=keep)
            self.plain.rights.append(Right(grant, of, to, self.plain.now, None, (of, to)))
            self._was_granted(self.plain.rights[-1], by, keep=keep)
            self.noted()

    def _was_granted(self, right: Right, by: Owner | None, *, keep: bool) -> None:
        """Whether a row that a flush has just written surely leads to the key."""
        is_held = by is not None and self.plain.holds(by, right.of, surely=True)
        if by is not None and by in self.kept and keep:
            is_held = is_held and (right.of is by or right.of in self.kept[by].holds)
        if right.to.is_enrolled and (is_held or not right.has_past):
            right.sure = self.plain.now

    def _row(self, right: Right) -> Any:
        return right.grant.of_id == right.of.id, right.grant.to_id == right.to.id

    def remove(
        self,
        right: Right,
        by: Owner | None = None,
        *,
        keep: bool = False,
        ending: str = "commit",
        way: str = "object",
    ) -> None:
        """A granting row is deleted."""
        self.before_removal([right])
        table = right.grant.__tablename__
        keys = {"of_id": right.of.id, "to_id": right.to.id}

        def work(session: Session) -> None:
            if way == "sql":
                session.execute(text(f"DELETE FROM {table} WHERE of_id = :of_id AND to_id = :to_id"), keys)
            elif way == "bulk":
                session.execute(sa.delete(right.grant).where(*self._row(right)))
            elif way == "collection" and right.grant is CrewSeat:
                crew = session.get_one(Crew, right.of.id)
                crew.seats.remove(next(one for one in crew.seats if one.to_id == right.to.id))
            else:
                session.delete(session.scalars(select(right.grant).where(*self._row(right))).one())

        if self.change(work, by, keep=keep, ending=ending):
            self.passed(by, keep=keep, by_flush=way not in ("sql", "bulk"))
            self.plain.rights.remove(right)
            self.noted()

    def move(
        self,
        right: Right,
        of: Owner,
        to: Owner,
        by: Owner | None = None,
        *,
        keep: bool = False,
        ending: str = "commit",
        way: str = "object",
    ) -> None:
        """A granting row is made to say something else."""
        self.before_removal([right])
        table = right.grant.__tablename__
        keys = {"of_id": right.of.id, "to_id": right.to.id, "new_of": of.id, "new_to": to.id}

        def work(session: Session) -> None:
            if way == "sql":
                statement = f"UPDATE {table} SET of_id = :new_of, to_id = :new_to"
                session.execute(text(f"{statement} WHERE of_id = :of_id AND to_id = :to_id"), keys)
            else:
                row = session.scalars(select(right.grant).where(*self._row(right))).one()
                row.of_id, row.to_id = of.id, to.id

        if self.change(work, by, keep=keep, ending=ending):
            self.passed(by, keep=keep, by_flush=way != "sql")
            right.of, right.to = of, to
            if way != "sql":
                right.joined, right.sure, right.made = self.plain.now, None, (of, to)
                self._was_granted(right, by, keep=keep)
            self.noted()

    def delete(self, group: Owner, by: Owner | None = None, *, way: str = "object", **options: Any) -> None:
        """A group is deleted, with all that hangs on it."""
        self.before_removal([one for one in self.plain.rights if group in (one.of, one.to)])

        def work(session: Session) -> None:
            if way == "sql":
                session.execute(
                    text(f"DELETE FROM {group.kind.__tablename__} WHERE id = :id"), {"id": group.id}
                )
            else:
                session.delete(session.get_one(group.kind, group.id))

        if self.change(work, by, **options):
            self.passed(by, keep=options.get("keep", False), by_flush=way != "sql")
            self.plain.delete(group)
            self.noted()

    def write(
        self,
        owner: Owner,
        by: Owner | None = None,
        *,
        column: str = "text",
        how: str = "unlocked",
        keep: bool = False,
        ending: str = "commit",
    ) -> None:
        """A value is written for an owner: by somebody, by a server, or while its owner is locked. Whoever
        has no right to the key is refused."""
        self.count += 1
        written, made = f"text {self.count}", []

        def work(session: Session) -> None:
            row = PAGES[owner.kind](owner_id=owner.id, **{column: written})
            session.add(row)
            session.flush()
            made.append(row.id)

        must, may = self._writes(owner, by, column, how, keep=keep)
        try:
            is_done = self._write(work, by, how, keep=keep, ending=ending)
        except EnvelopeError:
            assert not must, "a value is refused that may be written"
            return
        assert may, "a value is written by somebody without the key"
        if is_done:
            self.passed(by, keep=keep)
            value = Value(owner, column, made[0], written, self.plain.now, how == "write_only")
            self.plain.values.append(value)
            self.noted()

    def _writes(
        self, owner: Owner, by: Owner | None, column: str, how: str, *, keep: bool
    ) -> tuple[bool, bool]:
        """Whether a value must, and may, be written."""
        if how == "write_only":
            return True, True
        if how == "server":
            return owner.has_provider, owner.has_provider
        assert by is not None
        may = self.plain.holds(by, owner, surely=False, column=column)
        if owner.kind is Person:
            return owner is by, may
        if keep and by in self.kept:
            return owner in self.kept[by].holds, may
        return self.plain.holds(by, owner, surely=True), may

    def _write(
        self, work: Callable[[Session], None], by: Owner | None, how: str, *, keep: bool, ending: str
    ) -> bool:
        def beside(session: Session) -> None:
            if how == "write_only":
                around: Any = self.envelope.write_only(session)
            else:
                around = self.envelope.server_mode(session, reason="the machine")
            with around:
                work(session)

        if how == "unlocked":
            return self.change(work, by, keep=keep, ending=ending)
        return self.change(beside, ending=ending)

    def rewrite(self, value: Value, owner: Owner, by: Owner, *, ending: str = "commit") -> None:
        """Somebody writes a value anew, or gives its row to another owner."""
        self.count += 1
        written = f"text {self.count}"

        def work(session: Session) -> None:
            row = session.get_one(PAGES[value.owner.kind], value.row)
            setattr(row, value.column, written)
            row.owner_id = owner.id

        if self.change(work, by, ending=ending):
            self.passed(by)
            value.owner, value.text, value.at, value.is_sealed = owner, written, self.plain.now, False
            self.noted()

    def keep(self, person: Owner, *, settle: bool) -> None:
        """Somebody unlocks, and stays."""
        session, context = Session(self.engine), Context()
        unlocked = self.unlock(session, person)
        context.run(unlocked.__enter__)
        self.kept[person] = Kept(session, unlocked, context, set(), set())
        if settle:
            self.passed()
            self.plain.settled_by(person)
            unlocked.settle()
        reads = context.run(self.read, session)
        session.commit()
        self.remember(person, unlocked)
        self.noted()
        self.compare(person, reads)
        holds = {one for one in self.plain.owners() if self.plain.holds(person, one, surely=True)}
        self.kept[person].reads, self.kept[person].holds = reads, holds

    def leave(self, person: Owner) -> None:
        """Somebody locks what they kept open: nothing opens there any more."""
        kept = self.kept.pop(person)
        self.remember(person, kept.unlocked)
        kept.context.run(kept.unlocked.__exit__, None, None, None)

        assert self.read(kept.session) == set()
        kept.session.close()

    def change_keys(self, person: Owner) -> None:
        """Somebody lets a server in and out again, and so gets a new root key."""

        def work(session: Session) -> None:
            row = session.get_one(Person, person.id)
            self.envelope.add_provider(session, row, provider="server")
            self.envelope.remove_provider(session, row, provider="server")

        self.change(work, person)
        self.passed(person)
        self.noted()

    def shut_server_out(self, group: Owner, by: Owner) -> None:
        """A group's provider loses its slot."""

        def work(session: Session) -> None:
            self.envelope.remove_provider(session, session.get_one(group.kind, group.id), provider="server")

        self.change(work, by)
        self.passed(by)
        group.has_provider = False
        self.noted()

    def settle_all(self) -> None:
        """A job settles what the server has slots of."""
        self.plain.now += 1
        for kind in (Crew, Fleet, Watch):
            with Session(self.engine) as session:
                for _ in self.envelope.settle_all(session, kind, provider="server", reason="the machine"):
                    session.commit()
        for group in self.plain.groups:
            if group.has_provider:
                self.plain.settled_of(group)
        self.noted()

    # What holds

    def broken(self, *, is_settled: bool = False) -> list[str]:
        """The rules that do not hold."""
        with Session(self.engine) as session:
            self.envelope.attach(session)
            return violations(session, WORLD_OWNERS, settled=is_settled)

    def everybody_settles(self) -> None:
        """All settle, as often as it takes: everything is in order then, and read by who may."""
        people = [one for one in self.plain.people if one.is_enrolled]
        for _ in range(3):
            if any(one.has_provider for one in self.plain.groups):
                self.settle_all()
            for person in people:
                self.passed(person)
                self.come(person, self._settle)
                self.noted()
            broken = self.broken(is_settled=True)
            if not broken:
                break

        assert broken == []
        for person in people:
            self.look(person)
            self.spy(person)

    def _settle(self, session: Session) -> None:
        self.envelope.settle(session)
        session.commit()

    def end(self) -> None:
        """Everything is left."""
        for kept in self.kept.values():
            kept.context.run(kept.unlocked.__exit__, None, None, None)
            kept.session.close()
