"""Somebody who may write to the database alters, moves and plants values: an error and no value."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import DecryptionError, EnvelopeError, FormatError, LockedError, TruncatedError
from tests.conftest import EveryNth
from tests.orm.attackers.scene import VALUES, Scene, entity, flip
from tests.orm.models import Note, Page

ADA, BEN = "the secret of ada", "another one, of ben"
BODY, TEXT, PHONE = "ada's diary", "ada's page", "+44 20 7946 0000"


def column_only(model: Any, name: str) -> Callable[[Session], Any]:
    """Read a value of ada's row in a select of the column alone; a locked one is a handle that says so."""

    def read(session: Session) -> Any:
        where = model.id == (uuid.UUID(int=1) if model is Page else 1)
        return session.scalars(select(getattr(model, name)).where(where)).one() + ""

    return read


@pytest.mark.parametrize("which", VALUES)
def test_no_flipped_bit_of_a_value_goes_unnoticed(
    scene: Scene, which: str, record_property: Any, every_nth: EveryNth
) -> None:
    """Every byte inverted, and single bits of header, nonce, first ciphertext byte and tag: each ninth, or
    every one with `--all`."""
    model, name, table, where = VALUES[which]
    before = scene.writer.read(table, name, where)
    bits = [*range(30), *range(len(before) - 16, len(before))]
    single = every_nth(9, [(at, 1 << bit) for at in bits for bit in range(8)])
    cases = [*((at, 0xFF) for at in every_nth(3, range(len(before)))), *single]

    with scene.unlocked((1, ADA)) as session:
        for at, mask in cases:
            expected = FormatError if at == 0 else LockedError if at < 17 else DecryptionError
            with (
                scene.writer.altered(table, name, where, flip(before, at, mask)),
                pytest.raises(expected) as caught,
            ):
                entity(model, name)(session)

            assert caught.type is expected or (
                expected is LockedError and issubclass(caught.type, LockedError)
            )
        assert entity(model, name)(session) is not None
    record_property("cases", len(cases))


@pytest.mark.parametrize("which", ["text", "of the owner"])
def test_no_flipped_byte_goes_unnoticed_in_a_select_of_columns(scene: Scene, which: str) -> None:
    """The same where no object is loaded: an unknown key gives a handle that cannot be used as a value."""
    model, name, table, where = VALUES[which]
    before = scene.writer.read(table, name, where)

    with scene.unlocked((1, ADA)) as session:
        for at in range(len(before)):
            with scene.writer.altered(table, name, where, flip(before, at)), pytest.raises(EnvelopeError):
                column_only(model, name)(session)


@pytest.mark.parametrize("which", ["text", "row-bound"])
def test_no_length_but_the_right_one_is_accepted(scene: Scene, which: str) -> None:
    """A value cut at every length, or with bytes added, is refused; what cannot be a value, before any
    cryptography."""
    model, name, table, where = VALUES[which]
    before = scene.writer.read(table, name, where)
    cases = [before[:size] for size in range(len(before))]
    cases += [before + bytes(size) for size in (1, 15, 16, 17, 4096)] + [before + before]

    with scene.unlocked((1, ADA)) as session:
        for altered in cases:
            expected = (
                FormatError if not altered else TruncatedError if len(altered) < 45 else DecryptionError
            )
            with scene.writer.altered(table, name, where, altered), pytest.raises(expected) as caught:
                entity(model, name)(session)

            assert caught.type is expected


@pytest.mark.parametrize("which", VALUES)
@pytest.mark.parametrize(
    "planted", ["ada's diary", 7, 2**40, 1.5, b"ada's diary", b"", b"\x00" * 64, b"\x01" * 64]
)
def test_plaintext_planted_in_a_column_is_never_taken_for_a_value(
    scene: Scene, which: str, planted: Any
) -> None:
    """SQLite stores anything anywhere: text and numbers in an encrypted column are a `FormatError`."""
    model, name, table, where = VALUES[which]

    with scene.unlocked((1, ADA)) as session, scene.writer.altered(table, name, where, planted):
        with pytest.raises((FormatError, LockedError)) as caught:
            entity(model, name)(session)

        assert caught.type is (LockedError if planted == b"\x01" * 64 else FormatError)


def test_values_swapped_between_columns_tables_and_types_do_not_open(both: Scene) -> None:
    """Every value of an owner in every other column of the same owner: twenty swaps, twenty refusals."""
    stored = {
        which: both.writer.read(table, name, where) for which, (_, name, table, where) in VALUES.items()
    }
    swaps = [(source, target) for source in VALUES for target in VALUES if source != target]

    with both.unlocked((1, ADA)) as session:
        for source, target in swaps:
            model, name, table, where = VALUES[target]
            with both.writer.altered(table, name, where, stored[source]), pytest.raises(DecryptionError):
                entity(model, name)(session)
    assert len(swaps) == 20


@pytest.mark.parametrize("which", VALUES)
def test_another_owners_value_does_not_open_in_my_row(both: Scene, which: str) -> None:
    """Ben's value in Ada's row: locked for Ada, and refused for Ben, whose key would open it."""
    model, name, table, where = VALUES[which]
    of_ben = both.writer.read(table, name, where.replace("1", "2"))

    with both.writer.altered(table, name, where, of_ben):
        with both.unlocked((1, ADA)) as session, pytest.raises(LockedError):
            entity(model, name)(session)
        with both.unlocked((2, BEN)) as session, pytest.raises(DecryptionError):
            entity(model, name)(session)


@pytest.mark.parametrize(
    "order", [((1, ADA), (2, BEN)), ((2, BEN), (1, ADA))], ids=["ada first", "ben first"]
)
@pytest.mark.parametrize("which", VALUES)
def test_two_owners_unlocked_at_once_do_not_lend_each_other_rows(
    scene: Scene, which: str, order: Any
) -> None:
    """With both keys at hand a value that was copied into the other's row is refused all the same."""
    model, name, table, where = VALUES[which]
    of_ben = scene.writer.read(table, name, where.replace("1", "2"))

    with scene.unlocked(*order) as session:
        entity(model, name)(session)
        with scene.writer.altered(table, name, where, of_ben), pytest.raises(DecryptionError):
            entity(model, name)(session)


def test_a_row_given_to_another_owner_does_not_open(both: Scene) -> None:
    """The foreign key altered instead of the value: refused for the old owner, locked for the new one."""
    for table, model, name in (("notes", Note, "body"), ("pages", Page, "text")):
        where = "id = 1" if model is Note else "title IS NULL AND user_id = 1"
        with both.writer.altered(table, "user_id", where, 2):
            with both.unlocked((1, ADA)) as session, pytest.raises(DecryptionError):
                entity(model, name)(session)
            with both.unlocked((2, BEN)) as session, pytest.raises(LockedError):
                entity(model, name)(session)


def test_a_row_bound_value_does_not_open_in_another_row(both: Scene) -> None:
    """Neither copied to a second row of the same owner, nor after its row's primary key was altered."""
    with both.unlocked((1, ADA)) as session:
        session.add(Page(id=uuid.UUID(int=9), user_id=1, text="the ninth"))
        session.commit()
        of_first = both.writer.read("pages", "text", "user_id = 1 ORDER BY id LIMIT 1")
        both.writer.run("UPDATE pages SET text = :text WHERE user_id = 1", text=of_first)
        session.expunge_all()

        assert session.get_one(Page, uuid.UUID(int=1)).text == TEXT
        with pytest.raises(DecryptionError):
            session.get_one(Page, uuid.UUID(int=9)).text  # noqa: B018 - reading it is the point


def test_within_one_owner_a_column_bound_value_can_be_copied_between_rows(scene: Scene) -> None:
    """The documented limit of `bind="column"`: rows of one owner and one column can be exchanged;
    `bind="row"` cures."""
    with scene.unlocked((1, ADA)) as session:
        session.add(Note(id=9, user_id=1, body="the ninth"))
        session.commit()
        scene.writer.run("UPDATE notes SET body = (SELECT body FROM notes WHERE id = 9) WHERE id = 1")

        assert entity(Note, "body")(session) == "the ninth"
