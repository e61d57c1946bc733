"""What README.md and docs/ say about stored plaintext, error trackers and other tenants: each sentence is
quoted, beside the tests that prove it. A sentence that is changed fails, and so does a proof that is gone.

What no other suite proves is proved below.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, MetaData, Text, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    OwnerColumn,
    PreviousColumn,
    PreviousValueError,
    RowSealError,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration import Migrator

ROOT = Path(__file__).parent.parent
SECRET = "correct horse battery staple"
PROFILE = KdfProfile.unsafe_for_tests()
README, THREATS = "README.md", "docs/explanation/threat-model.md"
LIMITS, DECLARE = "docs/explanation/limitations.md", "docs/how-to/declare.md"
TENANTS, SERVER_KEYS = "docs/how-to/tenants.md", "docs/how-to/server-keys.md"

Claim = tuple[str, str, list[str]]

STORED: list[Claim] = [
    (
        README,
        "sizes, times, `NULL`s, who exists and whose each row is: no value and no key",
        [
            "orm/nothing_in_the_clear/test_a_whole_life.py::test_a_whole_life_leaves_nothing_on_sqlite",
            "orm/nothing_in_the_clear/test_a_whole_life.py::test_a_whole_life_leaves_nothing_on_postgres",
            "orm/nothing_in_the_clear/test_a_whole_life.py::test_the_search_finds_what_is_there",
            "orm/sharing/attackers/test_altered_rows.py::test_a_copy_of_the_database",
        ],
    ),
    (
        README,
        "an INSERT or UPDATE in any form that SQLAlchemy has is encrypted or refused before it is sent",
        [
            "orm/writing/gate/test_forms.py::test_works",
            "orm/writing/gate/test_forms.py::test_locked",
            "orm/writing/gate/test_forms.py::test_in_a_cte",
            "orm/writing/gate/test_other_tables.py::test_another_table_object",
            "orm/writing/test_statement_generator.py::test_on_sqlite",
            "orm/writing/test_statement_generator.py::test_on_postgresql",
        ],
    ),
    (
        README,
        "in new tables a CHECK refuses what comes past SQLAlchemy",
        ["orm/columns/test_stored_value.py::test_what_is_refused"],
    ),
    (
        README,
        "A value that was altered, or moved to another column or table, is an error and never a value",
        [
            "orm/attackers/test_values.py::test_no_flipped_bit_of_a_value_goes_unnoticed",
            "orm/attackers/test_values.py::test_values_swapped_between_columns_tables_and_types_do_not_open",
            "orm/attackers/test_values.py::test_plaintext_planted_in_a_column_is_never_taken_for_a_value",
        ],
    ),
    (
        README,
        "A value that was moved to another owner's row is an error wherever the row says whose it is",
        [
            "orm/reading/test_reading_table.py::test_the_table",
            "orm/reading/test_reading_table.py::test_on_postgresql",
            "orm/attackers/test_values.py::test_another_owners_value_does_not_open_in_my_row",
            "orm/columns/test_whose_key.py::test_another_owners_value_is_refused",
            "orm/sessions/server_mode/test_entering.py::test_a_value_moved_to_another_owners_row_is_found",
        ],
    ),
    (
        THREATS,
        "Nobody is shown another person's value",
        [
            "orm/reading/test_reading_table.py::test_the_table",
            "orm/reading/test_reading_stress.py::test_many_readers_at_once",
        ],
    ),
    (
        README,
        'with `bind="row"` to another row too',
        ["orm/attackers/test_values.py::test_a_row_bound_value_does_not_open_in_another_row"],
    ),
    (
        README,
        "keys are resolved per row, from the row's owner, and live in a context that no other request sees",
        [
            "orm/current/isolation/test_many_unlocks.py::test_many_unlocks_in_tasks",
            "orm/current/isolation/test_many_unlocks.py::test_many_unlocks_in_threads",
            "orm/current/isolation/test_contexts.py::test_who_inherits_the_context",
        ],
    ),
    (
        README,
        "A changed secret rewrites key slots, and no row of data.",
        ["test_claims.py::test_a_changed_secret_touches_slots_alone"],
    ),
    (
        LIMITS,
        "It is never taken for an encrypted one: reading it is `FormatError`.",
        ["orm/attackers/test_values.py::test_plaintext_planted_in_a_column_is_never_taken_for_a_value"],
    ),
    (
        DECLARE,
        "Nothing of a refused flush or statement is stored.",
        ["orm/columns/test_whose_key.py::test_without_the_key_nothing_is_stored"],
    ),
    (
        DECLARE,
        "The five other ways are in one program, [examples/whose_key.py](../../examples/whose_key.py).",
        ["integrations/test_whose_key.py::test_each_row_is_under_the_key_of_its_owner"],
    ),
    (
        DECLARE,
        "Each version is encrypted for the owner of the row that it is a copy of, and that owner reads it.",
        ["integrations/test_continuum.py::test_versions_are_under_their_owners_key"],
    ),
    (
        DECLARE,
        "nothing deletes these rows with their owner: they stay, and nobody can read them any more.",
        ["test_claims.py::test_rows_that_name_a_deleted_owner_open_for_nobody"],
    ),
    (
        THREATS,
        "refused when it is moved: `PreviousValueError`",
        ["test_claims.py::test_another_owners_value_in_the_previous_column"],
    ),
    (
        THREATS,
        "Errors and reports name rows by their primary key and never show a value",
        [
            "migration/test_engine.py::test_no_plaintext_in_logs_errors_or_state",
            "migration/test_attacks.py::test_nothing_shows_in_logs_and_state",
        ],
    ),
    (
        README,
        "Nothing is encrypted twice, what old writers change is found, every value is compared before the",
        [
            "migration/test_engine.py::test_running_twice_changes_nothing",
            "migration/test_engine.py::test_a_second_run_finds_exactly_what_old_writers_wrote",
            "migration/test_engine.py::test_verify_finds_every_kind_of_difference",
            "migration/test_engine.py::test_contract_refuses_until_everything_is_as_it_must_be",
        ],
    ),
    (
        LIMITS,
        "An INSERT or UPDATE of an encrypted column is encrypted, or refused before it is sent",
        [
            "orm/writing/gate/test_forms.py::test_works",
            "orm/writing/gate/test_forms.py::test_a_construct_that_nobody_knows",
        ],
    ),
    (
        DECLARE,
        "at least 45 bytes, the first of them `01`, or `NULL`.",
        [
            "orm/columns/test_stored_value.py::test_what_is_refused",
            "orm/columns/test_stored_value.py::test_what_is_taken",
        ],
    ),
    (
        THREATS,
        "A dump with the server keys opens exactly what the slot lists say.",
        [
            "orm/sharing/attackers/test_altered_rows.py::test_a_copy_of_the_database",
            "orm/sharing/attackers/test_altered_rows.py::test_an_owner_of_secrets_alone_is_not_the_operators",
        ],
    ),
]

TOLD: list[Claim] = [
    (
        README,
        "no plaintext and no key, from this library and from SQLAlchemy",
        [
            "orm/nothing_in_the_clear/test_a_whole_life.py::test_a_whole_life_leaves_nothing_on_sqlite",
            "orm/nothing_in_the_clear/test_a_whole_life.py::test_no_way_to_switch_debug_on_shows_a_decrypted_row",
        ],
    ),
    (
        README,
        "no secret, key or plaintext from the library, its frames' variables included.",
        [
            "test_frames.py::test_every_error_is_raised_here",
            "test_frames.py::test_no_frame_of_an_error_holds_a_needle",
            "test_frames.py::test_no_frame_of_another_error_holds_a_needle",
            "test_frames.py::test_no_frame_of_an_asynchronous_error_holds_a_needle",
        ],
    ),
    (
        README,
        "The frames of SQLAlchemy and of your own code hold rows and typed secrets",
        ["test_frames.py::test_frames_of_sqlalchemy_are_sent_by_default_and_left_out_by_one_option"],
    ),
    (
        THREATS,
        "`sentry_sdk.init(..., include_local_variables=False)`",
        ["test_frames.py::test_frames_of_sqlalchemy_are_sent_by_default_and_left_out_by_one_option"],
    ),
    (
        THREATS,
        "no secret, no key, no plaintext, whatever error leaves it: its own, a database driver's, or one",
        [
            "test_frames.py::test_no_frame_of_an_error_holds_a_needle",
            "test_frames.py::test_no_frame_of_another_error_holds_a_needle",
        ],
    ),
    (
        THREATS,
        "nothing: their part of the traceback is dropped",
        ["test_frames.py::test_the_frames_of_a_derivation_that_failed_are_dropped"],
    ),
    (
        THREATS,
        "The library's errors and representations hold no value and no key",
        [
            "orm/nothing_in_the_clear/test_errors_and_objects.py::test_what_decryption_finds_is_not_told",
            "orm/nothing_in_the_clear/test_errors_and_objects.py::test_no_object_of_the_library_shows_what_it_holds",
        ],
    ),
]

APART: list[Claim] = [
    (
        README,
        "an owner's name says database and schema, so that user 1 of one tenant is not user 1 of the other.",
        [
            "orm/tables/test_locations.py::test_whoever_is_unlocked_in_one_database_is_locked_in_another",
            "orm/tables/test_locations.py::test_each_database_has_its_own_key_while_both_are_unlocked",
            "orm/tables/test_locations.py::test_a_schema_of_its_own_is_a_place_of_its_own",
            "orm/sessions/test_found_keys.py::test_each_tenant_is_written_under_its_own_keys",
        ],
    ),
    (
        THREATS,
        "Rows of another database with the same server key are genuine: [give each a realm]",
        ["test_claims.py::test_the_rows_of_another_database"],
    ),
    (
        TENANTS,
        "the key rows of one database are genuine in another, unless each has a realm.",
        [
            "test_claims.py::test_the_rows_of_another_database",
            "orm/tables/test_locations.py::test_rows_that_were_sealed_in_another_realm_are_refused",
        ],
    ),
    (
        TENANTS,
        "Keys that are unlocked for a user in one place open nothing in another and encrypt nothing there.",
        [
            "orm/tables/test_locations.py::test_whoever_is_unlocked_in_one_database_is_locked_in_another",
            "orm/tables/test_locations.py::test_a_value_of_another_databases_owner_is_refused",
        ],
    ),
    (
        TENANTS,
        "Two engines are one database if their URLs have the same host, port and database name.",
        [
            "orm/tables/test_locations.py::test_names_of_databases",
            "orm/tables/test_locations.py::test_two_engines_on_one_database_are_one",
        ],
    ),
    (
        TENANTS,
        "`SET search_path` on PostgreSQL and `USE` on MySQL and MariaDB work as well",
        [
            "orm/tables/test_locations.py::test_search_path",
            "orm/sessions/test_found_keys.py::test_one_transaction_goes_from_tenant_to_tenant",
        ],
    ),
    (
        TENANTS,
        "where the pool has listeners, in each transaction.",
        ["orm/tables/test_default_schema.py::test_a_checkout_listener_may_change_the_schema"],
    ),
    (
        TENANTS,
        "the key tables are on the engine of the class that they belong to.",
        [
            "orm/tables/test_follow_owner.py::test_binds",
            "orm/tables/test_follow_owner.py::test_server_mode_with_binds",
        ],
    ),
    (
        TENANTS,
        "the database of an owner is the one that its session *writes* to.",
        ["orm/tables/test_locations.py::test_followers_of_a_leader_serve_its_owners"],
    ),
    (
        TENANTS,
        "keys are in the same transaction as the values that are written under them.",
        ["orm/tables/test_follow_owner.py::test_two_phase_commit"],
    ),
    (
        LIMITS,
        "A `ShardedSession` is refused",
        [
            "orm/tables/test_locations.py::test_a_sharded_session_is_refused_with_a_sentence",
            "orm/tables/test_follow_owner.py::test_sharded_session",
        ],
    ),
    (
        SERVER_KEYS,
        "If one server key serves several databases, [give each a realm]",
        ["test_claims.py::test_the_rows_of_another_database"],
    ),
]


@cache
def words(page: str) -> str:
    """A page without its line breaks."""
    return " ".join((ROOT / page).read_text("utf-8").split())


@cache
def functions_in(path: str) -> set[str]:
    """The names of a test file's functions."""
    tree = ast.parse((ROOT / "tests" / path).read_text("utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("page", "sentence", "proofs"), [*STORED, *TOLD, *APART])
def test_what_a_page_says_is_proved(page: str, sentence: str, proofs: list[str]) -> None:
    """The page says so in these words, and the tests that are named for it exist."""
    missing = [one for one in proofs if one.partition("::")[2] not in functions_in(one.partition("::")[0])]

    assert sentence in words(page)
    assert proofs
    assert missing == []


# What no other suite proves


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(Text))


class Preference(Base):
    __tablename__ = "preferences"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[int]
    value: Mapped[str] = mapped_column(EncryptedType(Text, owner=OwnerColumn("account", of=User)))


class Moving(Base):
    """Its values move from this library's own ciphertext to ciphertext that is bound to its row."""

    __tablename__ = "moving"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(
        "body_encrypted",
        EncryptedType(
            Text,
            bind="row",
            previous=PreviousColumn("body", EncryptedType(Text, owner="user_id", label="moving.body")),
        ),
    )


def server(realm: Any = None) -> Envelope:
    return Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([b"k" * 32]), realm=realm)


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Every table, read past the library."""
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return {
            name: [tuple(row) for row in connection.execute(table.select())]
            for name, table in tables.tables.items()
        }


def test_a_changed_secret_touches_slots_alone(engine: Engine) -> None:
    """After a change of the secret every table but the one of key slots is what it was."""
    envelope = Envelope(kdf_profile=PROFILE)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        user = User()
        with envelope.enroll(session, user, secret=SECRET):
            session.add(Note(user_id=user.id, body="needle"))
            session.commit()
        before = contents(engine)
        envelope.change_secret(session, user, old=SECRET, new="other words entirely")
        session.commit()
    after = contents(engine)

    # Sorted: the row of the root key is written as it is, so that PostgreSQL returns it in another place.
    changed = [name for name in before if sorted(map(str, before[name])) != sorted(map(str, after[name]))]
    assert changed == ["users_keyslot"]


def test_rows_that_name_a_deleted_owner_open_for_nobody(engine: Engine) -> None:
    """A row that names its owner without a foreign key outlives that owner, and its value opens for nobody,
    the server included."""
    envelope = server()
    Base.metadata.create_all(engine)
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        user = User()
        session.add(user)
        session.flush()
        session.add(Preference(account=user.id, value="dark"))
        session.commit()
        session.delete(user)
        session.commit()
    with Session(engine) as session, server().server_mode(session, reason="test"):
        left = session.scalars(select(Preference)).one()

        with pytest.raises(LockedError):
            print(left.value)


def test_another_owners_value_in_the_previous_column(engine: Engine) -> None:
    """A ciphertext of Ada's that was put into the previous column of Eve's row is not encrypted for Eve,
    though the migration could open it."""
    envelope = server()
    Base.metadata.create_all(engine)
    migrator = Migrator(engine, envelope, Base, provider="server")
    migrator.expand("moving.body")
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        session.add_all([User(id=1), User(id=2)])
        session.flush()
        session.add_all([Moving(id=1, user_id=1, body="Ada's"), Moving(id=2, user_id=2, body="Eve's")])
        session.commit()
    assert migrator.verify("moving.body").is_clean
    with engine.begin() as connection:
        stolen = "UPDATE moving SET body = (SELECT body FROM moving WHERE id = 1) WHERE id = 2"
        connection.execute(text(stolen))

    assert not migrator.verify("moving.body").is_clean
    with pytest.raises(PreviousValueError, match="another owner"):
        migrator.run("moving.body")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT body_encrypted FROM moving WHERE id = 2")) is None


@contextmanager
def two_databases(folder: Path, realms: tuple[Any, Any]) -> Iterator[list[tuple[Engine, Envelope]]]:
    """Two databases with one server key, a user 1 in each."""
    made = []
    for number, realm in enumerate(realms):
        engine, envelope = create_engine(f"sqlite:///{folder / str(number)}.db"), server(realm)
        enforce_foreign_keys(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            envelope.enroll(session, User(id=1), secret=f"secret of {number}")
            session.commit()
        made.append((engine, envelope))
    yield made
    for engine, _ in made:
        engine.dispose()


@pytest.mark.parametrize("realms", [(None, None), ("one", "other")], ids=["no realm", "a realm each"])
def test_the_rows_of_another_database(tmp_path: Path, realms: tuple[Any, Any]) -> None:
    """With one server key, the key rows of a database log in to another one; not where each has a realm."""
    with two_databases(tmp_path, realms) as ((source, _), (target, envelope)):
        tables = MetaData()
        tables.reflect(source)
        with source.connect() as read, target.begin() as write:
            write.execute(tables.tables["users_key"].delete())
            for name in ("users_key", "users_keyslot"):
                rows = [dict(row) for row in read.execute(tables.tables[name].select()).mappings()]
                write.execute(tables.tables[name].insert(), rows)
        with Session(target) as session:
            user = session.get_one(User, 1)
            if realms == (None, None):
                with envelope.unlock(session, user, secret="secret of 0") as unlocked:
                    assert unlocked.is_open
            else:
                with pytest.raises(RowSealError):
                    envelope.unlock(session, user, secret="secret of 0")
