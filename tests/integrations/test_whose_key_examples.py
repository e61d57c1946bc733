"""Examples of owners without a foreign key: a shop, and an application from another library."""

import ast
import inspect
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from examples import integrations_app, whose_key
from sqlalchemy_envelope import Envelope, ServerKeyring
from sqlalchemy_envelope.orm.current import context
from tests.integrations import integrations_before
from tests.integrations.test_server_mode_app import serve

FILLED = {
    "items": ["for Charles", "number 0", "number 1", "number 2"],
    "settings": ["dark"],
    "documents": ["Ada's letter", "the company's contract"],
    "documents_history": ["Ada's letter", "the company's contract"],
    "credentials": ["of the payment service"],
}
COLUMNS = [
    ("items", "engraving"),
    ("settings", "value"),
    ("documents", "text"),
    ("documents_history", "text"),
    ("credentials", "token"),
]


def test_the_shop(engine: Engine) -> None:
    """Each kind of owner is found in a flush, in bulk and in a copy inside the database. Nothing is stored in
    the clear."""
    envelope = Envelope(server_keys=ServerKeyring([b"k" * 32]))
    read = whose_key.shop(engine, envelope)
    with engine.connect() as connection:
        found = [connection.execute(text(f"SELECT {one} FROM {table}")).scalars() for table, one in COLUMNS]
        stored = [bytes(value) for values in found for value in values]

    assert {table: sorted(values) for table, values in read.items()} == FILLED
    assert len(stored) == sum(map(len, FILLED.values()))
    assert not any(
        value.encode() in blob for blob in stored for values in FILLED.values() for value in values
    )


def _functions(module: ModuleType) -> dict[str, str]:
    """The source of each handler and model, without documentation."""
    tree = ast.parse(inspect.getsource(module))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, kinds)}


def test_only_imports_types_and_start_up_were_changed() -> None:
    """Every class and function of the application before is in it now, word for word, but for its
    start-up."""
    before, now = _functions(integrations_before), _functions(integrations_app)
    start_up = ast.unparse(ast.parse(inspect.getsource(integrations_app.create_app)))
    added = [line for line in start_up.splitlines() if line not in before["create_app"].splitlines()]

    assert {name for name in now if now[name] != before.get(name)} == {"Vault", "create_app"}
    assert before.keys() - now.keys() == set()
    assert len(added) == 2


@pytest.mark.parametrize("module", [integrations_before, integrations_app], ids=["before", "now"])
def test_the_application_does_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Both answer alike, and the tokens are not in the database."""
    monkeypatch.setenv("DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("ENVELOPE_SERVER_KEYS", ServerKeyring.generate_key())
    monkeypatch.setenv("SECRET", "one key for all rows")
    given = {"service": "payments", "token": "needle one", "webhook_secret": "needle two"}
    try:
        with serve(module.create_app()) as address, httpx.Client(base_url=address) as client:
            assert client.post("/integrations", json=given).status_code == 201
            assert client.put("/integrations/payments", json=given | {"token": "needle three"}).is_success
            assert client.put("/integrations/other", json=given).status_code == 404
            answer = client.get("/integrations").json()
    finally:
        if context.NOTHING.server is not None:
            context.NOTHING.server.stop()  # type: ignore[attr-defined]
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT token, webhook_secret FROM integrations")).all()
    stored = [one.encode() if isinstance(one, str) else bytes(one) for row in rows for one in row]

    assert answer == [{"service": "payments", "token": "needle three", "webhook_secret": "needle two"}]
    assert len(stored) == 2
    assert not any(b"needle" in value for value in stored)
