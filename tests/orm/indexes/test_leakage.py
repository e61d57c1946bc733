"""The leakage report tells what an attack on the live column gives: it is compared with the attack on the
plaintext, which the test has and the report has not."""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    Envelope,
    KdfProfile,
    Leakage,
    PublicValues,
    measure_leakage,
)
from sqlalchemy_envelope.orm.indexes.leakage.attack import simulate
from tests.orm.indexes.leaking_models import ENVELOPE, Record, drawn, fill, zipf
from tests.orm.indexes.range_models import Base as VisitBase
from tests.orm.indexes.range_models import Visit

KEYLESS = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


def measured(
    engine: Engine, index: Any, public: PublicValues | None = None, envelope: Envelope = ENVELOPE, **more: Any
) -> Leakage:
    with Session(engine) as session:
        envelope.attach(session)
        return measure_leakage(session, index, public, **more)


def attacked(values: Iterable[str], public: list[str]) -> float:
    """The share of rows that a frequency attack gets, with the plaintext at hand: ties in any order."""
    counts = Counter(values)
    right, first = 0.0, 0
    for count, same in groupby(sorted(counts, key=lambda one: -counts[one]), counts.__getitem__):
        tied = list(same)
        hit = set(tied) & set(public[first : first + len(tied)])
        right += count * len(hit) / len(tied)
        first += len(tied)
    return right / counts.total()


def test_a_uniform_column_tells_nothing(sqlite_engine: Engine) -> None:
    """Of a hundred values that are equally common, a guess is right for one row in a hundred, with the tags
    or without; and with the key for each row."""
    weights = {f"value {number}": 1.0 for number in range(100)}
    fill(sqlite_engine, name=drawn(weights, 2_000))
    found = measured(sqlite_engine, Record.name_index, PublicValues.of(weights))

    assert found.guessed == pytest.approx(0.01)
    assert found.recovered == pytest.approx(0.01, abs=0.002)
    assert found.given_away < 0.03
    assert not found.is_above
    assert found.with_key == pytest.approx(1.0)
    assert (found.rows, found.tags, found.alone) == (2_000, 100, 0.0)


def test_a_unique_column_tells_nothing(sqlite_engine: Engine) -> None:
    """No two rows have an equal: there is nothing to count, whatever the public figures are."""
    weights = zipf(400)
    fill(sqlite_engine, name=list(weights))
    found = measured(sqlite_engine, Record.name_index, PublicValues.of(weights))

    assert found.alone == 1.0
    assert found.measured == pytest.approx(1 / 400)
    assert found.exact == pytest.approx(1 / 400)
    assert not found.is_above
    assert found.distance is not None
    assert found.distance > 0.2
    assert "does not look as the public figures say" in "\n".join(found.lines())


def test_a_column_by_zipfs_law_tells_its_commonest_values(engine: Engine) -> None:
    """The report's attack on the tags is the attack on the plaintext; its simulation is the mean of attacks
    on such columns."""
    weights = zipf(200)
    values = drawn(weights, 3_000)
    fill(engine, name=values)
    found = measured(engine, Record.name_index, PublicValues.of(weights))
    others = [attacked(drawn(weights, 3_000, seed), list(weights)) for seed in range(40)]

    assert found.measured == pytest.approx(attacked(values, list(weights)))
    assert found.recovered == pytest.approx(mean(others), abs=0.03)
    assert found.is_above
    assert found.distance is not None
    assert found.distance < 0.1


def test_a_boolean_column_tells_everything(sqlite_engine: Engine) -> None:
    """Seven in ten smoke: the commonest tag is theirs, and every row is told without any key."""
    fill(sqlite_engine, smokes=[number % 10 < 7 for number in range(1_000)])
    public = PublicValues.of({"true": 70, "false": 30})
    found = measured(sqlite_engine, Record.smokes_index, public, KEYLESS)

    assert found.recovered == pytest.approx(1.0)
    assert found.guessed == pytest.approx(0.7)
    assert found.given_away == pytest.approx(1.0)
    assert (found.measured, found.with_key) == (None, None)
    assert "change something" in found.lines()[-5]
    assert found.lines()[-1] == "  - Leave the index out, and compare decrypted values."


def test_an_even_boolean_is_a_coin(sqlite_engine: Engine) -> None:
    """Where half of the people smoke, the tags cannot be told apart; exact knowledge does not help either."""
    fill(sqlite_engine, smokes=[number % 2 == 0 for number in range(1_000)])
    found = measured(sqlite_engine, Record.smokes_index, PublicValues.of({"true": 1, "false": 1}))

    assert found.measured == pytest.approx(0.5)
    assert found.exact == pytest.approx(0.5)
    assert found.recovered == pytest.approx(0.5, abs=0.05)


def test_fewer_bits_tell_less(sqlite_engine: Engine) -> None:
    """Two hundred towns in 32 tags: the same attack gets less, with the key too. The report says so of the
    full index before anybody truncates it."""
    weights = zipf(200)
    towns = drawn(weights, 3_000)
    fill(sqlite_engine, town=towns, name=towns)
    public = PublicValues.of(weights)
    full = measured(sqlite_engine, Record.name_index, public, threshold=0.12)
    short = measured(sqlite_engine, Record.town_index, public)

    assert short.tags <= 32
    assert short.recovered is not None
    assert full.recovered is not None
    assert short.recovered < full.recovered
    assert short.with_key is not None
    assert 0.3 < short.with_key < 0.9
    assert "fewer bits" in " ".join(full.advice).lower()


def test_a_tag_of_a_beginning_stands_for_several_values(sqlite_engine: Engine) -> None:
    """Anna and Anne have one tag: whoever finds it out knows three in four of its rows. The tags of
    beginnings are told, and not the values behind them."""
    weights = {"anna": 3.0, "anne": 1.0, "bert": 2.0}
    fill(sqlite_engine, first=[name for name, count in weights.items() for _ in range(int(count) * 50)])
    found = measured(sqlite_engine, Record.first_index, PublicValues.of(weights))

    assert (found.tags, found.guessed) == (2, pytest.approx(0.5))
    for share in (found.recovered, found.measured, found.with_key):
        assert share == pytest.approx(5 / 6, abs=0.01)


def test_of_several_attributes_and_of_slow_indexes_it_simulates(sqlite_engine: Engine) -> None:
    """No list of values is hashed there: the attack without a key does not need it."""
    fill(sqlite_engine, first=["a", "a", "b", None], code=["1", "1", "2", "3"])
    public = PublicValues.of({"a and 1": 2, "b and 2": 1})
    found = [measured(sqlite_engine, one, public) for one in (Record.both_index, Record.code_index)]

    assert all(one.recovered is not None and one.measured is None for one in found)
    assert [one.most for one in found] == [pytest.approx(2 / 3), pytest.approx(1 / 2)]


def test_without_public_figures_the_report_has_the_worst_case(sqlite_engine: Engine) -> None:
    """Who knows how often each value is in this very column names each value whose count no other has."""
    fill(sqlite_engine, name=["a"] * 5 + ["b"] * 3 + ["c"] * 3 + ["d"])
    found = measured(sqlite_engine, Record.name_index)

    assert found.exact == pytest.approx((5 + 3 + 1) / 12)
    assert (found.recovered, found.measured) == (None, None)
    assert "At worst" in "\n".join(found.lines())


def test_rows_of_two_owners_are_attacked_apart(sqlite_engine: Engine) -> None:
    """Equal tags under two keys say nothing together: each owner is a column of its own."""
    fill(sqlite_engine, name=["a", "b", "a", "c"])
    with sqlite_engine.begin() as connection:
        connection.execute(text("PRAGMA foreign_keys = OFF"))
        connection.execute(text("UPDATE records SET person_id = 2 WHERE id > 2"))
        for number, tag in enumerate((b"1", b"1", b"1", b"2"), 1):
            connection.execute(
                text("UPDATE records SET own_index = :tag WHERE id = :id"), {"tag": tag * 16, "id": number}
            )
    found = measured(sqlite_engine, Record.own_index, PublicValues.of({"a": 3, "b": 1}))

    assert (found.rows, found.tags, found.keys) == (4, 3, 2)
    assert found.alone == pytest.approx(0.5)
    assert found.recovered is not None
    assert "Rows of two owners cannot be compared" in "\n".join(found.lines())


def test_rows_without_a_tag_are_pending(sqlite_engine: Engine) -> None:
    """They have a value and are not found: the report counts them. Rows without a value are no such rows."""
    fill(sqlite_engine, name=["a", "b", None])
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE records SET name_index = NULL WHERE id = 1"))
    found = measured(sqlite_engine, Record.name_index)

    assert (found.rows, found.pending) == (1, 1)


def test_an_empty_column_has_nothing_to_tell(sqlite_engine: Engine) -> None:
    """There is no row: no share of it, and no error."""
    fill(sqlite_engine, name=[None])
    found = measured(sqlite_engine, Record.name_index, PublicValues.of({"a": 1}))

    assert "no row has a tag yet" in "".join(found.lines())
    assert not found.is_above


def test_what_is_advised_can_be_declared(sqlite_engine: Engine) -> None:
    """An index of beginnings, or of buckets, takes a single attribute: nobody is told to add another."""
    fill(sqlite_engine, name=["a"] * 5)
    VisitBase.metadata.create_all(sqlite_engine)
    columns = (Record.name_index, Record.first_index, Visit.born_index)
    whole, start, bucket = (measured(sqlite_engine, one).advice for one in columns)

    assert any("BlindIndex(('name', '...'))" in one for one in whole)
    assert not any("BlindIndex((" in one for one in [*start, *bucket])


def test_what_is_no_index_is_refused(sqlite_engine: Engine) -> None:
    """An encrypted column, and a class, are no blind index."""
    for other in (Record.name, Record, Record.__table__.c.id):
        with pytest.raises(ConfigurationError, match="no blind index"):
            measured(sqlite_engine, other)


def test_public_values_that_do_not_fit_are_counted(sqlite_engine: Engine) -> None:
    """A column of booleans holds no "perhaps"."""
    fill(sqlite_engine, smokes=[True, False, True])
    public = PublicValues.of({"yes": 2, "no": 1, "perhaps": 1})
    found = measured(sqlite_engine, Record.smokes_index, public)

    assert found.unfit == 1
    with pytest.raises(ConfigurationError, match="can hold none"):
        measured(sqlite_engine, Record.smokes_index, PublicValues.of({"perhaps": 1}))


@pytest.mark.parametrize(
    "text_of_file",
    [
        "value,count\nMaier,30\nHuber,10\n",
        "Huber,0.1\nMaier,0.3",
        '{"Maier": 3, "Huber": 1}',
        "\ufeffMaier,3\nHuber,1",
    ],
)
def test_public_figures_come_from_a_file(tmp_path: Path, text_of_file: str) -> None:
    """Lines or a JSON object, counts or shares, with a heading or without."""
    file = tmp_path / "figures"
    file.write_text(text_of_file, encoding="utf-8")
    found = PublicValues.from_file(file)

    assert found.values == ("Maier", "Huber")
    assert found.shares == pytest.approx((0.75, 0.25))


_NO_FIGURES = ["", "Maier", "Maier,1\nHuber", "a,0", "a,-1", "a,nan", "a,1,2"]


@pytest.mark.parametrize("text_of_file", [*_NO_FIGURES, "{", "[1]", '{"a": "b"}', '{"a": null}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text_of_file: str) -> None:
    """The error names the file and none of its values."""
    file = tmp_path / "figures"
    file.write_text(text_of_file)
    with pytest.raises(ConfigurationError) as raised:
        PublicValues.from_file(file)

    assert "Maier" not in str(raised.value)
    assert str(file) in str(raised.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        PublicValues.from_file(tmp_path / "nowhere")


def test_figures_do_not_show_values() -> None:
    """Neither public values nor their shares stand in a repr."""
    assert "Maier" not in repr(PublicValues.of({"Maier": 1}))


@pytest.mark.parametrize(("rows", "seed"), [(50, 1), (5_000, 2)])
def test_the_simulation_is_repeatable_and_near_the_mean(rows: int, seed: int) -> None:
    """Few rows are drawn one by one, many by Poisson's law: both agree with attacks on drawn plaintext."""
    weights = zipf(120)
    shares = PublicValues.of(weights).shares
    one, again = (simulate(shares, rows, 128, seed=seed) for _ in range(2))
    truth = mean(attacked(drawn(weights, rows, number), list(weights)) for number in range(150))

    assert one == again
    assert one.recovered == pytest.approx(truth, abs=0.03)
    assert sum(one.shares) == pytest.approx(1)
