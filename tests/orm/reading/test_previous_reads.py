"""Objects read while their values are moved: the encrypted value if there is one, else the previous one of
the same row, read at the same moment; or the error that the policy says. Never None for a value that is
there."""

# ruff: noqa: N806 - the classes are those of a step, and are found in it

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    defer,
    joinedload,
    load_only,
    mapped_column,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    with_polymorphic,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from sqlalchemy_envelope import (
    DecryptionError,
    EncryptedType,
    FormatError,
    KeyOwner,
    LockedError,
    PlaintextRefusedError,
    PreviousColumn,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from tests.orm.models import statements_sent, without_checks
from tests.orm.previous_models import SECRET, Moving, envelope, models, start

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]

PENDING, NOTHING = 7, 8


def with_pending(engine: Engine, policy: Any) -> Moving:
    """A pending note, 7, and one without a value, 8."""
    moving = start(engine, policy)
    moving.old(
        "INSERT INTO notes (id, user_id, title, body, extra) VALUES (7, :user, 't', 'old', :json)",
        user=moving.user_id,
        json='{"a": 1}',
    )
    moving.old("INSERT INTO notes (id, user_id) VALUES (8, :user)", user=moving.user_id)
    return moving


@pytest.fixture(params=["both", "read"])
def anywhere(request: pytest.FixtureRequest, engine: Engine) -> Moving:
    """The steps that read the previous column, on SQLite and on PostgreSQL."""
    return with_pending(engine, request.param)


@pytest.fixture(params=["both", "read"])
def moving(request: pytest.FixtureRequest, sqlite_engine: Engine) -> Moving:
    """The steps that read the previous column, on SQLite."""
    return with_pending(sqlite_engine, request.param)


@pytest.fixture
def refusing(sqlite_engine: Engine) -> Moving:
    """The step that reads the encrypted column alone."""
    return with_pending(sqlite_engine, "refuse")


@pytest.fixture
def step_one(sqlite_engine: Engine) -> Moving:
    """The step that writes both columns."""
    return with_pending(sqlite_engine, "both")


def holds_nothing_hidden(instance: Any) -> None:
    """No sealed value and no previous attribute stays in an object."""
    assert not any(isinstance(one, Sealed) for one in vars(instance).values())
    assert not any(name.endswith("__previous") for name in vars(instance))


def test_loads(anywhere: Moving) -> None:
    """A pending value is read with and without the key, an encrypted one with it, and nothing is None."""
    with anywhere.unlocked() as session:
        key = anywhere.note(session, body="new").id
    for open_ in (anywhere.unlocked, anywhere.locked):
        with open_() as session:
            note = session.get_one(anywhere.m.Note, PENDING)
            assert (note.body, note.size, note.extra) == ("old", None, {"a": 1})
            assert session.get_one(anywhere.m.Note, NOTHING).body is None
            holds_nothing_hidden(note)
    with anywhere.unlocked() as session:
        assert session.get_one(anywhere.m.Note, key).body == "new"


def test_the_encrypted_value_counts(anywhere: Moving) -> None:
    """With both columns set, the previous one says nothing."""
    with anywhere.unlocked() as session:
        key = anywhere.note(session, body="new").id
    anywhere.old("UPDATE notes SET body = 'not this' WHERE id = :id", id=key)
    with anywhere.unlocked() as session:
        assert session.get_one(anywhere.m.Note, key).body == "new"


def test_locked_rows_in_the_first_step(step_one: Moving) -> None:
    """Locked, the first step reads what a program read before it; with nothing there, locked is locked."""
    with step_one.unlocked() as session:
        key = step_one.note(session, body="new").id
    with step_one.locked() as session:
        note = session.get_one(step_one.m.Note, key)
        assert note.body == "new"
        holds_nothing_hidden(note)
    step_one.old("UPDATE notes SET body = NULL WHERE id = :id", id=key)
    with step_one.locked() as session, pytest.raises(LockedError):
        session.get_one(step_one.m.Note, key).body  # noqa: B018 - reading it is the point


def test_locked_rows_in_the_second_step(sqlite_engine: Engine) -> None:
    """From the second step on a locked value is an error, whatever the previous column still holds."""
    first = start(sqlite_engine, "both")
    with first.unlocked() as session:
        key = first.note(session, body="new").id
    second = first.at("read")
    with second.locked() as session, pytest.raises(LockedError):
        session.get_one(second.m.Note, key).body  # noqa: B018 - reading it is the point
    with second.locked() as session:
        note = session.get_one(second.m.Note, key)
        holds_nothing_hidden(note)
        with envelope.unlock(session, session.get_one(second.m.User, second.user_id), secret=SECRET):
            assert note.body == "new"


@pytest.mark.parametrize("locked", [False, True])
def test_altered_ciphertext_is_never_the_previous_value(anywhere: Moving, locked: bool) -> None:
    """What somebody altered is an error, with the previous value right beside it."""
    with anywhere.unlocked() as session:
        key = anywhere.note(session, body="new").id
    found = anywhere.old("SELECT body_encrypted FROM notes WHERE id = :id", id=key)
    blob = bytearray(found[0][0])
    blob[-1] ^= 1
    if locked:
        blob = bytearray(b"not ours")
        without_checks(anywhere.engine)
    statement = "UPDATE notes SET body_encrypted = :blob, body = 'beside' WHERE id = :id"
    anywhere.old(statement, blob=bytes(blob), id=key)
    open_, error = (anywhere.locked, FormatError) if locked else (anywhere.unlocked, DecryptionError)
    with open_() as session, pytest.raises(error):
        session.get_one(anywhere.m.Note, key).body  # noqa: B018 - reading it is the point
    with anywhere.unlocked() as session, pytest.raises((FormatError, DecryptionError)):
        session.scalars(select(anywhere.m.Note.body).where(anywhere.m.Note.id == key)).all()


def test_refused(refusing: Moving) -> None:
    """Under the last policy touching a pending value is an error, until it is set."""
    with refusing.unlocked() as session:
        note = session.get_one(refusing.m.Note, PENDING)
        assert note.title == "t"
        for _ in range(2):
            with pytest.raises(PlaintextRefusedError):
                note.body  # noqa: B018 - reading it is the point
        assert "old" not in repr(vars(note))
        session.expire(note)
        with pytest.raises(PlaintextRefusedError):
            note.body  # noqa: B018 - as above
        assert session.get_one(refusing.m.Note, NOTHING).body is None
        note.body = "new"
        session.commit()
        assert note.body == "new"

    assert refusing.row("notes", PENDING, "body") == (None, True)


def test_refused_when_detached(refusing: Moving) -> None:
    """An object that left its session refuses as well."""
    with refusing.locked() as session:
        note = session.get_one(refusing.m.Note, PENDING)
        session.expunge(note)
    with pytest.raises(PlaintextRefusedError):
        note.body  # noqa: B018 - reading it is the point
    with pytest.raises(PlaintextRefusedError):
        del note.body


# Parts of rows


def later(moving: Moving, note: Any, session: Session) -> None:
    """Another program changes the row, and takes its encrypted value out."""
    moving.old("UPDATE notes SET body = 'newer', body_encrypted = NULL WHERE id = :id", id=note.id)


@pytest.mark.parametrize("how", ["expire", "refresh", "expire all", "populate"])
def test_one_attribute_is_read_again(anywhere: Moving, how: str) -> None:
    """However an attribute is read again, it is what both columns say now."""
    Note = anywhere.m.Note
    with anywhere.unlocked() as session:
        note = anywhere.note(session, body="new")
        assert note.body == "new"
        session.commit()
        later(anywhere, note, session)
        if how == "expire":
            session.expire(note, ["body"])
        elif how == "refresh":
            session.refresh(note, ["body"])
        elif how == "expire all":
            session.expire_all()
        else:
            session.execute(select(Note).execution_options(populate_existing=True)).all()
        assert note.body == "newer"
        holds_nothing_hidden(note)


def test_known_objects_in_a_later_query(anywhere: Moving) -> None:
    """A locked object whose row another program made pending has its value from the next query that meets it;
    an open one keeps what it has, as every attribute does."""
    Note = anywhere.m.Note
    with anywhere.unlocked() as session:
        key = anywhere.note(session, body="new").id
        anywhere.old("UPDATE notes SET body = NULL WHERE id = :id", id=key)
        note = session.get_one(Note, key)
        anywhere.old("UPDATE notes SET body = 'newer', body_encrypted = NULL WHERE id = :id", id=PENDING)
        session.scalars(select(Note)).all()
        assert note.body == "new"
        holds_nothing_hidden(note)
    with anywhere.locked() as session:
        sealed = session.get_one(Note, key)
        anywhere.old("UPDATE notes SET body = 'newer', body_encrypted = NULL WHERE id = :id", id=key)
        session.scalars(select(Note)).all()
        assert sealed.body == "newer"
        holds_nothing_hidden(sealed)


def test_both_columns_come_in_one_statement(moving: Moving) -> None:
    """Whatever reads a pending attribute again ends with one statement that has both columns."""
    with moving.locked() as session:
        note = session.get_one(moving.m.Note, PENDING)
        session.expire(note, ["body"])
        with statements_sent(moving.engine) as sent:
            assert note.body == "old"

    assert len(sent) == 1
    assert "body_encrypted" in sent[0]
    assert "notes.body " in sent[0].replace(",", " ")


def test_refreshed_in_one_go(moving: Moving) -> None:
    """After `refresh(note, ["body"])` the value is there: touching it sends nothing more."""
    with moving.locked() as session:
        note = session.get_one(moving.m.Note, PENDING)
        session.refresh(note, ["body"])
        with statements_sent(moving.engine) as sent:
            assert note.body == "old"

    assert sent == []


@pytest.mark.parametrize("option", ["load_only", "defer", "another alone"])
def test_deferred(anywhere: Moving, option: str) -> None:
    """Deferred, or loaded without its previous column, a pending value is never None."""
    Note = anywhere.m.Note
    options = {
        "load_only": load_only(Note.body),
        "defer": defer(Note.body),
        "another alone": load_only(Note.title),
    }
    with anywhere.locked() as session:
        found = session.scalars(
            select(Note).options(options[option]).where(Note.id.in_([PENDING, NOTHING])).order_by(Note.id)
        ).all()
        with statements_sent(anywhere.engine) as sent:
            assert [one.body for one in found] == ["old", None]

    assert option != "load_only" or sent == []


@pytest.mark.parametrize("loader", [joinedload, selectinload, subqueryload])
@pytest.mark.parametrize("part", [False, True])
def test_eager_loads(anywhere: Moving, loader: Any, part: bool) -> None:
    """Collections come with their values, whatever loads them and if only a part of each row is asked for."""
    User, Note = anywhere.m.User, anywhere.m.Note
    option = loader(User.notes)
    with anywhere.locked() as session:
        statement = select(User).options(option.load_only(Note.body) if part else option).limit(5)
        users = session.scalars(statement).unique().all()
        assert [one.body for one in users[0].notes] == ["old", None]


def test_lazy_loads(anywhere: Moving) -> None:
    """A relationship read when it is touched."""
    with anywhere.locked() as session:
        user = session.get_one(anywhere.m.User, anywhere.user_id)
        assert [one.body for one in user.notes] == ["old", None]
        assert session.get_one(anywhere.m.Note, NOTHING).user.phone is None


def test_subclasses(anywhere: Moving) -> None:
    """Loaded as themselves, as their parent, and in every polymorphic way."""
    m = anywhere.m
    with anywhere.unlocked() as session:
        session.add_all([m.Guest(id=1, user_id=1, wish="tea"), m.Staff(id=2, user_id=1, salary=5)])
        session.commit()
    anywhere.old("UPDATE people SET wish = 'milk', wish_encrypted = NULL")
    anywhere.old("UPDATE staff SET salary = 6, salary_encrypted = NULL")
    every = with_polymorphic(m.Person, "*")
    for statement in (
        select(m.Person),
        select(every),
        select(m.Person).options(selectin_polymorphic(m.Person, [m.Guest, m.Staff])),
    ):
        with anywhere.locked() as session:
            guest, staff = sorted(session.scalars(statement), key=lambda one: int(one.id))
            assert (guest.wish, staff.salary) == ("milk", 6)
    with anywhere.locked() as session:
        guest, staff = session.get_one(m.Guest, 1), session.get_one(m.Staff, 2)
        session.expire(staff, ["salary"])
        session.expire(guest, ["wish"])
        assert (guest.wish, staff.salary) == ("milk", 6)


def test_entities_from_subqueries(anywhere: Moving) -> None:
    """An alias of the class, a subquery of it, and rows that come from a statement of the application."""
    Note = anywhere.m.Note
    inner = select(Note).where(Note.id == PENDING).subquery()
    statements = [
        select(aliased(Note)).where(sa.true()).order_by("id"),
        select(aliased(Note, inner)),
        select(Note).from_statement(select(Note).where(Note.id == PENDING)),
        select(Note).from_statement(sa.text("SELECT id, user_id, body_encrypted FROM notes WHERE id = 7")),
    ]
    for statement in statements[1:]:
        with anywhere.locked() as session:
            assert session.scalars(statement).one().body == "old"


def test_mutable_values(anywhere: Moving) -> None:
    """A dictionary from the previous column is watched as any: changed in place, it is written."""
    with anywhere.unlocked() as session:
        note = session.get_one(anywhere.m.Note, PENDING)
        note.extra["b"] = 2
        session.commit()
        session.expire_all()
        assert note.extra == {"a": 1, "b": 2}
        other = anywhere.note(session, title="x")
        anywhere.old("UPDATE notes SET extra = '{}' WHERE id = :id", id=other.id)
        session.refresh(other)
        other.extra["c"] = 3
        session.flush()
        session.info["unlocked"].lock()
        assert "extra" not in vars(other)

    assert anywhere.row("notes", PENDING, "extra")[1]


def test_leaving(anywhere: Moving) -> None:
    """Leaving forgets what was decrypted; a pending value needs no key and stays."""
    with anywhere.locked() as session:
        user = session.get_one(anywhere.m.User, anywhere.user_id)
        with envelope.unlock(session, user, secret=SECRET):
            pending, note = session.get_one(anywhere.m.Note, PENDING), anywhere.note(session, body="new")
            session.refresh(note)
            assert (pending.body, note.body) == ("old", "new")
        with statements_sent(anywhere.engine) as sent:
            assert pending.body == "old"
        assert sent == []
        assert "new" not in vars(note).values()
        if anywhere.policy == "both":
            assert note.body == "new"  # read again, from the previous column
        else:
            with pytest.raises(LockedError):
                note.body  # noqa: B018 - reading it is the point


def test_detached(moving: Moving) -> None:
    """A detached object has its pending value; one that was not read is an error, not None."""
    Note = moving.m.Note
    with moving.locked() as session:
        whole = session.get_one(Note, PENDING)
        session.expunge(whole)
        part = session.get_one(Note, PENDING)
        session.expire(part, ["body"])
        session.expunge(part)
    assert whole.body == "old"
    with pytest.raises(DetachedInstanceError):
        part.body  # noqa: B018 - reading it is the point


def test_update_evaluated_in_python(anywhere: Moving) -> None:
    """`synchronize_session="evaluate"` with a test for NULL sees both columns."""
    Note = anywhere.m.Note
    with anywhere.locked() as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        session.execute(
            sa.update(Note).where(Note.body.is_(None)).values(title="none"),
            execution_options={"synchronize_session": "evaluate"},
        )
        assert [one.title for one in notes] == ["t", "none"]
        session.commit()
        assert [one.title for one in notes] == ["t", "none"]


# Both encrypted


def test_from_column_bound_to_row_bound(anywhere: Moving) -> None:
    """A pending value that is encrypted itself: read with the key, locked without it, found when it comes."""
    m = anywhere.m
    with anywhere.at("both").unlocked() as session:
        page = anywhere.at("both").m.Page(user_id=1, text="words")
        session.add(page)
        session.commit()
        key = page.id
    anywhere.old("UPDATE pages SET text_by_row = NULL")
    with anywhere.unlocked() as session:
        assert session.get_one(m.Page, key).text == "words"
        assert session.scalars(select(m.Page.text)).all() == ["words"]
    with anywhere.locked() as session:
        page = session.get_one(m.Page, key)
        holds_nothing_hidden(page)
        with pytest.raises(LockedError):
            page.text  # noqa: B018 - reading it is the point
        with envelope.unlock(session, session.get_one(m.User, 1), secret=SECRET):
            assert page.text == "words"
            holds_nothing_hidden(page)
        with pytest.raises(LockedError):
            page.text  # noqa: B018 - as above
        assert isinstance(session.scalars(select(m.Page.text)).one(), Sealed)


def test_a_previous_value_of_somebody_else(anywhere: Moving) -> None:
    """A previous value that is encrypted is compared with its row's owner as any."""
    m = anywhere.at("both").m
    with anywhere.at("both").unlocked() as session:
        session.add(m.Page(user_id=1, text="words"))
        ben = m.User(email="ben@example.org")
        with envelope.enroll(session, ben, secret=SECRET):
            session.add(m.Page(user=ben, text="ben's"))
            session.commit()
        ben_id = ben.id
    anywhere.old("UPDATE pages SET text_by_row = NULL, text = (SELECT text FROM pages WHERE user_id = 1)")
    with Moving(anywhere.engine, anywhere.policy, ben_id).unlocked() as session:
        one = session.get_one(anywhere.m.User, 1)
        with envelope.unlock(session, one, secret=SECRET), pytest.raises(DecryptionError):
            session.scalars(select(anywhere.m.Page).where(anywhere.m.Page.user_id == ben_id)).one().text  # noqa: B018


def test_several_owners_unlocked(anywhere: Moving) -> None:
    """Pending values come from nobody's key: they are not taken for values moved from another owner."""
    m = anywhere.m
    with anywhere.unlocked() as session:
        ben = m.User(email="ben@example.org")
        with envelope.enroll(session, ben, secret=SECRET):
            note = anywhere.note(session, body="mine")
            session.expire_all()
            found = session.scalars(select(m.Note).order_by(m.Note.id)).all()
            assert sorted(str(one.body) for one in found) == ["None", "mine", "old"]
            session.expire(found[0], ["body"])
            assert note.body == "mine"
            assert "old" in [one.body for one in found]


# Other shapes


def test_dataclasses(sqlite_engine: Engine) -> None:
    """The hidden attribute is no field of a mapped dataclass."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Owner(KeyOwner, Base, kw_only=True):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(init=False, primary_key=True)
        phone: Mapped[str | None] = mapped_column(
            "phone_encrypted",
            EncryptedType(sa.String, previous=PreviousColumn("phone", sa.String(20))),
            default=None,
        )

    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        session.add(Owner(phone="555"))
        session.commit()
        owner = session.scalars(select(Owner)).one()
        assert owner == Owner(phone="555") or "__previous" not in repr(owner)
        assert owner.phone == "555"


async def test_async(async_engine: AsyncEngine) -> None:
    """Under asyncio, what was loaded is there: nothing sends SQL where it cannot."""
    m = models("both")
    async with async_engine.begin() as connection:
        await connection.run_sync(m.Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        user = m.User(email="ada@example.org", phone="555")
        session.add(user)
        await session.flush()
        session.add(m.Note(user_id=user.id, body="plain", extra={"a": 1}))
        await session.commit()
        session.expunge_all()
        for statement in (
            select(m.Note),
            select(m.Note).options(load_only(m.Note.body, m.Note.extra)),
            select(m.Note).options(joinedload(m.Note.user)),
        ):
            note = (await session.scalars(statement)).one()
            assert (note.body, note.extra) == ("plain", {"a": 1})
            await session.refresh(note, ["body"])
            assert note.body == "plain"
            session.expunge_all()
        assert (await session.scalars(select(m.Note.body))).all() == ["plain"]


def test_one_deployment_after_the_other(engine: Engine) -> None:
    """The same database through all three steps, and back."""
    steps: list[Any] = ["both", "read", "refuse", "read", "both"]
    moving = start(engine, "both")
    with moving.unlocked() as session:
        key = moving.note(session, body="0").id
    for number, policy in enumerate(steps):
        step = moving.at(policy)
        with step.unlocked() as session:
            note = session.get_one(step.m.Note, key)
            assert note.body == str(number)
            note.body = str(number + 1)
            session.commit()


def test_engines_made_before(tmp_path: Any) -> None:
    """What is installed with the first such column works on engines and sessions that were there already."""
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    enforce_foreign_keys(engine)
    moving = with_pending(engine, "read")
    with moving.locked() as session:
        assert session.scalars(select(moving.m.Note.body).order_by(moving.m.Note.id)).all() == ["old", None]
    engine.dispose()
