"""`examples/integrations_app.py` as it was with `StringEncryptedType` of sqlalchemy-utils."""

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_utils import StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesGcmEngine


class Base(DeclarativeBase):
    pass


Secret = Annotated[str, mapped_column(StringEncryptedType(Text, lambda: os.environ["SECRET"], AesGcmEngine))]


class Integration(Base):
    __tablename__ = "integrations"
    id: Mapped[int] = mapped_column(primary_key=True)
    service: Mapped[str] = mapped_column(unique=True)
    token: Mapped[Secret]
    webhook_secret: Mapped[Secret | None]


class Given(BaseModel):
    service: str
    token: str
    webhook_secret: str | None = None


def add(given: Given, session: Session) -> dict[str, int]:
    integration = Integration(**given.model_dump())
    session.add(integration)
    session.commit()
    return {"id": integration.id}


def change(service: str, given: Given, session: Session) -> dict[str, str]:
    found = session.scalars(select(Integration).where(Integration.service == service)).one_or_none()
    if found is None:
        raise HTTPException(404)
    found.token = given.token
    session.commit()
    return {"service": found.service}


def listed(session: Session) -> list[dict[str, str | None]]:
    return [
        {"service": one.service, "token": one.token, "webhook_secret": one.webhook_secret}
        for one in session.scalars(select(Integration).order_by(Integration.service))
    ]


def create_app() -> FastAPI:
    engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///integrations.db"))
    Base.metadata.create_all(engine)
    app = FastAPI()

    def session() -> Iterator[Session]:
        with Session(engine) as opened:
            yield opened

    Opened = Annotated[Session, Depends(session)]  # noqa: N806 - a type

    @app.post("/integrations", status_code=201)
    def post(given: Given, opened: Opened) -> dict[str, int]:
        return add(given, opened)

    @app.put("/integrations/{service}")
    def put(service: str, given: Given, opened: Opened) -> dict[str, str]:
        return change(service, given, opened)

    @app.get("/integrations")
    def get(opened: Opened) -> list[dict[str, str | None]]:
        return listed(opened)

    return app
