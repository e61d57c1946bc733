"""That shop, on both databases."""

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from tests.orm.columns.owner_messages.shop_models import Base, Customer, Order

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """A customer, made by the server, with an order."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, envelope.server_mode(reason="test"):
        session.add(Customer(id=1))
        session.flush()
        session.add(Order(id=1, customer_id=1, address="somewhere"))
        session.commit()
    return engine
