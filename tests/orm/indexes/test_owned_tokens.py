"""Token indexes under the keys of owners: who is open finds the own texts, and nobody else's."""

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    LockedError,
    fill_tokens,
    token_index,
)
from tests.orm.indexes.owned_token_models import (
    Entry,
    Group,
    Membership,
    Minute,
    User,
    envelope,
    found,
    two_users,
    unlock,
)


def test_each_owner_finds_the_own_texts(engine: Engine) -> None:
    """Words of two owners have different tags; a negation finds rows of the open owner alone."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        for user_id in (ada, ben):
            with unlock(session, user_id):
                session.add_all(
                    [Entry(user_id=user_id, text=text) for text in ("dear diary", "nothing", None)]
                )
                session.commit()
        with pytest.raises(LockedError):
            found(session, Entry.text.has_word("diary"))
        with unlock(session, ada):
            mine = found(session, Entry.user_id == ada)
            assert mine[:1] == found(session, Entry.text.has_word("diary"))
            assert mine[1:2] == found(session, ~Entry.text.has_words("dear diary"))
            with unlock(session, ben):
                assert len(found(session, Entry.text.has_word("diary"))) == 2
            session.get_one(Entry, mine[0]).text = "changed"
            session.get_one(User, ada).about = "about me"
            session.commit()
            assert found(session, Entry.text.has_word("diary")) == []
            assert [ada] == found(session, User.about.has_word("about"), User.id)
        words = Entry.text_words.table
        repeated = select(words.c.tag).group_by(words.c.tag).having(func.count() > 1)
        assert len(session.scalars(repeated).all()) == 2  # that of every text, for each owner


def test_what_was_written_while_locked_gets_its_tags_when_the_owner_settles(engine: Engine) -> None:
    """A locked write leaves a text pending, takes the tags of the text before it away, and is counted."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        with unlock(session, ada):
            session.add(Entry(id=1, user_id=ada, text="old"))
            session.commit()
        with envelope.write_only(session):
            session.get_one(Entry, 1).text = "sent"
            session.commit()
        user = session.get_one(User, ada)
        assert list(map(tuple, envelope.pending_index_rows(session, user))) == [("Entry.text_words", 1)]
        with unlock(session, ada) as unlocked:
            assert found(session, Entry.text.has_word("old") | ~Entry.text.has_word("old")) == []
            with pytest.raises(ConfigurationError, match="settle"):
                fill_tokens(session, Entry.text_words, [session.get_one(Entry, 1)])
            unlocked.settle()
            session.commit()
            assert found(session, Entry.text.has_word("sent")) == [1]
        assert envelope.pending_index_rows(session, user) == ()


def test_members_find_the_texts_of_their_group(engine: Engine) -> None:
    """Each member finds what another member wrote."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        with unlock(session, ada):
            group = Group()
            envelope.enroll(session, group)
            session.add_all(Membership(group_id=group.id, user_id=one) for one in (ada, ben))
            session.commit()
            session.add(Minute(group_id=group.id, text="we met"))
            session.commit()
        with unlock(session, ben):
            assert found(session, Minute.text.has_word("met"), Minute.id) == [1]


def test_a_shredded_owner_leaves_no_tags(engine: Engine) -> None:
    """The tags of a shredded owner's texts go with the keys."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        for user_id in (ada, ben):
            with unlock(session, user_id):
                session.add(Entry(user_id=user_id, text="word"))
                session.commit()
        envelope.shred(session, session.get_one(User, ada), reason="test", keep_row=True)
        session.commit()

        rows = session.scalars(select(Entry.text_words.table.c.row_id).distinct()).all()
        assert found(session, Entry.user_id == ben) == list(rows)


def test_a_group_without_members_is_refused() -> None:
    """The scope "group" needs a class of grants."""

    class Fresh(DeclarativeBase):
        pass

    class Alone(KeyOwner, Fresh):
        __tablename__ = "alone"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(EncryptedType())
        words = token_index("text", scope="group")

    with pytest.raises(ConfigurationError, match="scope='owner'"):
        configure_mappers()
    Fresh.registry.dispose()
