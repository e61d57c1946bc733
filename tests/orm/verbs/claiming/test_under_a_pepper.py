"""A campaign behind an offline key, in an application with a pepper: secrets wait under it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring, UnclaimedError, UnlockError
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.keys.providers import OfflineKey, OfflinePublicKey
from tests.orm.models import SECRET, Base, User
from tests.orm.verbs.claiming.application import Application
from tests.prepared import tables_of

OFFLINE = OfflineKey.generate()
PEPPER, LATER, SEALING = b"\x0a" * 32, b"\x0b" * 32, ServerKeyring([b"\x51" * 32])
SLOTS = Base.metadata.tables["users_keyslot"]
WRAPPED, PUBLIC = ([one.key for one in SLOTS.c].index(name) for name in ("wrapped", "recipient_public_key"))


@pytest.fixture
def peppered(sqlite_engine: Engine, tmp_path: Path) -> Application:
    """The application with a pepper, whose owner chose a secret that waits for the custodians."""
    tables_of(Base.metadata, sqlite_engine)
    app = Application(sqlite_engine, tmp_path)
    restart(app, PEPPER)
    owner = app.away()
    app.claim(owner)
    return app


def restart(app: Application, *peppers: bytes) -> None:
    app.restart(
        OfflinePublicKey(OfflineKey(OFFLINE).public_key),
        server_keys=SEALING,
        pepper=ServerKeyring(list(peppers)) if peppers else None,
    )


def released(app: Application, *peppers: bytes) -> tuple[int, int]:
    """What the custodians did, on their machine."""
    custodians = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=SEALING,
        providers={"campaign": OfflineKey(OFFLINE)},
        pepper=ServerKeyring(list(peppers)) if peppers else None,
    )
    with Session(app.engine) as session:
        found = Campaign(app.engine, custodians, Base).release(session)
        session.commit()
    return tuple(found)  # type: ignore[return-value]  # a pair


def waiting(app: Application) -> list[tuple[Any, ...]]:
    return [row for row in app.slots() if len(row[WRAPPED]) == 121]


def test_a_waiting_secret_shows_nothing_and_opens_after_the_release(peppered: Application) -> None:
    """The slot that waits is ciphertext too, can be rotated, and opens once the custodians released it."""
    ((*slot,),) = waiting(peppered)

    assert (slot[WRAPPED][:1], slot[PUBLIC]) == (b"\x15", None)
    with pytest.raises(UnclaimedError, match="custodians"):
        peppered.note(1, secret=SECRET)
    with pytest.raises(UnlockError):
        peppered.note(1, secret="another one")
    restart(peppered, LATER, PEPPER)
    with Session(peppered.engine) as session:
        for _ in peppered.envelope.rotate_pepper(session, User):
            session.commit()
    assert released(peppered, LATER) == (1, 0)
    restart(peppered, LATER)
    assert peppered.note(1, secret=SECRET) == "of ada"


def test_custodians_without_the_pepper_release_nothing(peppered: Application) -> None:
    """Nobody can seal to a public key that cannot be read: the owner is counted as refused, and waits on."""
    assert released(peppered) == (0, 1)
    assert released(peppered, LATER) == (0, 1)
    assert released(peppered, PEPPER) == (1, 0)


def test_a_waiting_secret_under_a_lost_pepper_is_chosen_again(peppered: Application) -> None:
    """The application has authenticated the owner, so that another secret takes the place of the lost one."""
    restart(peppered, LATER)
    peppered.claim(1)

    assert len(waiting(peppered)) == 1
    assert released(peppered, LATER) == (1, 0)
    assert peppered.note(1, secret=SECRET) == "of ada"
