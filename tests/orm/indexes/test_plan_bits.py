"""`plan_bits` follows the published rule of CipherSweet, which is that of the AWS Database Encryption SDK."""

import pytest

from sqlalchemy_envelope import ConfigurationError, plan_bits

CIPHERSWEET: list[tuple[int, dict[str, object], tuple[int, int]]] = [
    (50_000, {}, (8, 15)),
    (50_000, {"beside": [(4, 2**16)]}, (4, 11)),
    (2**16, {"beside": [4, 4]}, (1, 7)),
    (2**16, {"beside": [4, 4], "values": 2**15}, (1, 7)),
    (2**31, {"beside": [4, 4]}, (8, 22)),
    (2**16, {}, (8, 15)),
    (2**16, {"values": 2**14}, (8, 14)),
    (2**8, {}, (4, 7)),
    (2**8, {"values": 2**7}, (4, 7)),
    (2**31, {}, (16, 30)),
    (2**31, {"values": 2**29}, (16, 29)),
    (2**31, {"values": 2**24}, (16, 24)),
    (2**31, {"values": 2**8}, (1, 8)),
    (2**31 - 1, {"values": 2**17}, (16, 17)),
]
"""What the planner of CipherSweet says: the examples of its manual and of its tests."""


@pytest.mark.parametrize(("rows", "options", "bits"), CIPHERSWEET)
def test_the_examples_of_ciphersweet_come_out(
    rows: int, options: dict[str, object], bits: tuple[int, int]
) -> None:
    """The lowest and the highest number of bits are those that CipherSweet publishes."""
    plan = plan_bits(rows, **options)  # type: ignore[arg-type]

    assert bits == (plan.low, plan.high)


def test_the_example_of_aws_comes_out() -> None:
    """Of 100,000 different values AWS recommends 9 to 16 bits. With 16, a tag stands for 1.5 values; with 14,
    for 6.1."""
    plan = plan_bits(100_000)

    assert (plan.low, plan.high) == (9, 16)
    assert [round(plan.sharing(bits), 1) for bits in (16, 14)] == [1.5, 6.1]


def test_other_indexes_on_the_column_add_up() -> None:
    """What several indexes tell together is told as if it were one: their bits, or those of their values, if
    that is less."""
    assert plan_bits(200_000, beside=[4]).sharing(8) == 200_000 / 2**12
    assert plan_bits(200_000, beside=[(20, 16)]) == plan_bits(200_000, beside=[4])


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        (2, {}, "fewer than 16 rows"),
        (15, {}, "Load the rows"),
        (16, {"beside": [32, 16, 16]}, "64 bits already"),
        (1000, {"values": 1}, "nothing apart"),
    ],
)
def test_too_few_rows_or_values_are_refused(rows: int, options: dict[str, object], match: str) -> None:
    """Where every number of bits tells too much, no number is given."""
    with pytest.raises(ConfigurationError, match=match):
        plan_bits(rows, **options)  # type: ignore[arg-type]
