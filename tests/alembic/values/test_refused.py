"""Revisions that would lose something, or have no key, are refused and change nothing."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    MigrationRefusedError,
    ServerKeyring,
)
from sqlalchemy_envelope.alembic import KeySource
from tests.alembic.environments import Environment, by_hand, script
from tests.alembic.moving_models import SERVER_KEY, declare, envelope, fill, values
from tests.alembic.values.letters import phones, stored

PHONE = 'op.encrypt_column("users", "phone", sa.String(20))'
PHONE_BACK = 'op.decrypt_column("users", "phone", sa.String(20))'
Made = Callable[..., Config]


def enroll_with_a_secret(engine: Engine) -> None:
    """Give the first user keys that no provider holds."""
    with Session(engine) as session:
        envelope.enroll(
            session, session.get_one(declare("plaintext").User, 1), secret="a long secret of hers"
        )
        session.commit()


@pytest.mark.parametrize("unique", [False, True])
def test_an_indexed_column_is_refused(made: Made, engine: Engine, unique: bool) -> None:
    """Its index can find nothing afterwards: the error has the line that drops it, and then it goes on."""
    config = made(f'op.drop_index("ix_phone", table_name="users")\n{PHONE}')
    before = fill(engine)
    with engine.begin() as connection:
        sa.Index(
            "ix_phone", sa.Table("users", sa.MetaData(), autoload_with=connection).c.phone, unique=unique
        ).create(connection)
    command.upgrade(config, "head")

    assert phones(engine) == before[:4]


def test_an_index_left_in_place_is_refused(made: Made, engine: Engine) -> None:
    """The error names the index and has the line that drops it."""
    config = made(PHONE)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE INDEX ix_phone ON users (phone)"))
    with pytest.raises(MigrationRefusedError, match=r"op\.drop_index\('ix_phone'"):
        command.upgrade(config, "head")


def test_a_column_that_is_encrypted_already(made: Made, engine: Engine) -> None:
    """Nothing is encrypted twice, and plaintext is not decrypted."""
    config = made(PHONE)
    fill(engine)
    command.upgrade(config, "head")
    by_hand(config, PHONE)
    with pytest.raises(MigrationRefusedError, match="already"):
        command.upgrade(config, "head")


def test_plaintext_is_not_decrypted(made: Made, engine: Engine) -> None:
    """A column of text has nothing encrypted in it."""
    config = made(PHONE_BACK)
    fill(engine)
    with pytest.raises(MigrationRefusedError, match="not binary"):
        command.upgrade(config, "head")


def test_missing_key_tables(made: Made, engine: Engine) -> None:
    """They have to be created before."""
    config = made(PHONE)
    fill(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE users_keyslot"))
    with pytest.raises(ConfigurationError, match="'users_keyslot' of User is not in the database"):
        command.upgrade(config, "head")


def test_rows_without_an_owner(environment: Environment, engine: Engine) -> None:
    """They are counted, and nothing is changed."""
    source = KeySource(envelope, declare("in place").Base)
    config = environment(engine, declare("plaintext").Base.metadata, envelope=source)
    declare("plaintext").Base.metadata.create_all(config.attributes["engine"])
    fill(engine)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE drafts (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users, body TEXT)"
            )
        )
        connection.execute(sa.text("INSERT INTO drafts VALUES (1, 1, 'a'), (2, NULL, 'b'), (3, NULL, NULL)"))
    by_hand(config, 'op.encrypt_column("drafts", "body", sa.Text())')
    with pytest.raises(
        MigrationRefusedError, match=r"1 value of drafts\.body cannot be encrypted, for want of an owner"
    ):
        command.upgrade(config, "head")

    assert stored(engine, "drafts", "body") == ["a", "b", None]


def test_an_owner_that_is_not_clear(made: Made, engine: Engine) -> None:
    """Two foreign keys to owners: the operation has to say which."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE lonely (id INTEGER PRIMARY KEY, body TEXT)"))
        connection.execute(sa.text("INSERT INTO lonely VALUES (1, 'a')"))
    config = made(
        'op.encrypt_column("lonely", "body", sa.Text())', include_name=lambda name, *_: name != "lonely"
    )
    with pytest.raises(ConfigurationError, match="owner='user_id'"):
        command.upgrade(config, "head")


def test_owners_who_hold_their_keys_alone(made: Made, engine: Engine) -> None:
    """The provider has no slot for them: refused with their number, and with what to use."""
    config = made(PHONE)
    before = fill(engine)
    enroll_with_a_secret(engine)
    with pytest.raises(MigrationRefusedError, match=r"1 value of users\.phone.*expand_encrypted_column"):
        command.upgrade(config, "head")

    assert values(engine, "plaintext") == before


def test_the_wrong_server_key_changes_nothing(made: Made, engine: Engine) -> None:
    """Values are not taken for plaintext, and the encrypted column stays."""
    config = made(PHONE, PHONE_BACK)
    before = fill(engine)
    command.upgrade(config, "head")
    other = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x99" * 32]))
    config.attributes["options"]["envelope"] = KeySource(other, declare("in place").Base)
    with pytest.raises(Exception, match=r"(?i)provider|key"):
        command.downgrade(config, "-1")

    assert phones(engine) == before[:4]


def test_a_script_is_refused(made: Made) -> None:
    """There are no keys and no values in `--sql`; the error names what can be written."""
    config = made(PHONE, PHONE_BACK)
    with pytest.raises(MigrationRefusedError, match="expand_encrypted_column"):
        script(config, "head")


def test_a_key_source_of_no_base() -> None:
    """What is no declarative base is refused where it is given, and so is a provider that is not there."""
    with pytest.raises(ConfigurationError, match="declarative base"):
        KeySource(envelope, object())
    with pytest.raises(ConfigurationError):
        KeySource(envelope, declare("in place").Base, provider="other")
    assert SERVER_KEY.hex() not in repr(KeySource(envelope, declare("in place").Base))


@pytest.mark.parametrize("back", [False, True])
def test_a_refusal_leaves_no_column(made: Made, engine: Engine, back: bool) -> None:
    """The column that was to be filled is gone, also where the caller goes on in the same transaction."""
    config = made(PHONE, PHONE_BACK)
    fill(engine)
    if back:
        command.upgrade(config, "head")
        other = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x99" * 32]))
        config.attributes["options"]["envelope"] = KeySource(other, declare("in place").Base)
    else:
        enroll_with_a_secret(engine)
    before = [one["name"] for one in sa.inspect(engine).get_columns("users")]
    with pytest.raises(EnvelopeError):
        command.downgrade(config, "-1") if back else command.upgrade(config, "head")
    with engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection, opts=config.attributes["options"]))
        call = op.decrypt_column if back else op.encrypt_column  # type: ignore[attr-defined]
        with pytest.raises(EnvelopeError):
            call("users", "phone", sa.String(20))

    assert before == [one["name"] for one in sa.inspect(engine).get_columns("users")]
