"""Shares of an escrow key: any k of n make it, fewer and wrong ones are refused, each with its own error."""

import itertools
import pickle
import traceback

import pytest
from shamir_mnemonic.shamir import combine_mnemonics, generate_mnemonics

from sqlalchemy_envelope import ConfigurationError, SharesError
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.custodians import WORD_COUNT, CustodianShare, joined, split
from sqlalchemy_envelope.keys.escrow import EscrowKey, OpenedEscrowKey

KEY = b"\x2a" * 32


def key_of(*texts: str) -> KeyBytes:
    """The key that these shares make."""
    return joined([CustodianShare(text, f"Share {number}") for number, text in enumerate(texts, 1)])


@pytest.fixture(scope="module")
def shares() -> list[str]:
    """Five shares; any three of them make the key."""
    return split(KeyBytes(KEY), 5, 3)


def test_any_three_of_five_make_the_key(shares: list[str]) -> None:
    """Each choice of three, in any order, and all five together."""
    chosen = [*itertools.permutations(shares, 3), tuple(shares)]

    assert [KeyBytes(KEY)] * 61 == [key_of(*some) for some in chosen]


def test_another_implementation_reads_the_shares(shares: list[str]) -> None:
    """The shares are SLIP-0039 with an empty passphrase: custodians need no program of ours."""
    assert combine_mnemonics(shares[1:4]) == KEY


def test_too_few(shares: list[str]) -> None:
    """k-1 shares are told how many are missing; none are told, too."""
    with pytest.raises(SharesError, match=r"3 shares .* and 2 were given: 1 more is needed"):
        key_of(*shares[:2])
    with pytest.raises(SharesError, match="No share was given"):
        key_of()


def test_two_ceremonies(shares: list[str]) -> None:
    """Shares of two ceremonies of one key do not go together, and the error names both by their words."""
    other = split(KeyBytes(KEY), 5, 3)

    with pytest.raises(SharesError) as raised:
        key_of(*shares[:2], other[4])
    words = [" ".join(one.split()[:2]) for one in (shares[0], other[0])]
    assert all(repr(one) in str(raised.value) for one in words)


def test_shares_that_only_look_alike() -> None:
    """Shares of two keys that share the words of their ceremony by chance or on purpose make no key."""
    first = generate_mnemonics(1, [(2, 3)], KEY)[0]
    forged = CustodianShare(generate_mnemonics(1, [(2, 3)], b"\x2b" * 32)[0][1], "Share 2")
    mine = CustodianShare(first[0], "Share 1")
    forged.ceremony = mine.ceremony
    object.__setattr__(forged._reveal(), "identifier", mine._reveal().identifier)
    object.__setattr__(forged._reveal(), "iteration_exponent", mine._reveal().iteration_exponent)

    with pytest.raises(SharesError, match="do not fit together"):
        joined([mine, forged])


def test_a_further_share_is_checked(shares: list[str]) -> None:
    """More shares than needed are not ignored: a wrong one is named."""
    *good, last = [CustodianShare(text, f"Share {number}") for number, text in enumerate(shares[:4], 1)]
    value = last._reveal().value
    object.__setattr__(last._reveal(), "value", bytes([value[0] ^ 1]) + value[1:])

    with pytest.raises(SharesError, match="fit"):
        joined([*good, last])


def test_twice_the_same(shares: list[str]) -> None:
    """One share given twice does not count twice."""
    with pytest.raises(SharesError, match="Share 1 and Share 3 are the same share, number 1"):
        key_of(shares[0], shares[1], shares[0])


def test_every_mistake_in_a_word_is_found(shares: list[str]) -> None:
    """A word of the list in place of another, two words swapped, and a word outside of the list."""
    words = shares[0].split()
    for at in range(WORD_COUNT):
        other = "academic" if words[at] != "academic" else "zero"
        with pytest.raises(SharesError, match="mistake"):
            CustodianShare(" ".join([*words[:at], other, *words[at + 1 :]]))
    with pytest.raises(SharesError, match="mistake"):
        CustodianShare(" ".join([*words[:7], words[8], words[7], *words[9:]]))
    with pytest.raises(SharesError, match="word 5 is not in the list"):
        CustodianShare(" ".join([*words[:4], "qwerty", *words[5:]]))


def test_typing_is_forgiven(shares: list[str]) -> None:
    """Capitals, line breaks and further blanks do not matter."""
    typed = [f"  {text.upper().replace(' ', chr(10) + '  ')}\n" for text in shares[:3]]

    assert key_of(*typed) == KeyBytes(KEY)


@pytest.mark.parametrize("text", ["", "academic acid", "academic " * 34, "escrow-private:AAAA"])
def test_no_share_at_all(text: str) -> None:
    """Text of another length is told how many words a share has."""
    with pytest.raises(SharesError, match="a share has 33"):
        CustodianShare(text)


def test_a_share_of_something_else() -> None:
    """A share of several groups, or of a single custodian, is of a wallet and not of an escrow key."""
    (wallet, _) = generate_mnemonics(2, [(2, 3), (2, 3)], KEY)
    (alone,) = generate_mnemonics(1, [(1, 1)], KEY)

    for text in (wallet[0], alone[0]):
        with pytest.raises(SharesError, match="something else"):
            CustodianShare(text)


@pytest.mark.parametrize(("custodians", "threshold"), [(1, 1), (3, 1), (2, 3), (17, 2), (5, 0)])
def test_ceremonies_that_cannot_be(custodians: int, threshold: int) -> None:
    """Shares are made for 2 to 16 custodians, and at least two of them have to come together."""
    with pytest.raises(ConfigurationError):
        split(KeyBytes(KEY), custodians, threshold)


def test_the_two_halves() -> None:
    """Each half has a text that the other's class refuses, and the private half leads to the public one."""
    opened = OpenedEscrowKey.generate()
    pinned = EscrowKey(opened.public.text)

    assert (
        OpenedEscrowKey(opened.text).public_key
        == pinned.public_key
        == EscrowKey(pinned.public_key).public_key
    )
    with pytest.raises(ConfigurationError, match="private half"):
        EscrowKey(opened.text)
    for wrong in (pinned.text, "", "escrow-private:AAAA", b"short", None):
        with pytest.raises(ConfigurationError):
            OpenedEscrowKey(wrong)  # type: ignore[arg-type]
    for wrong in ("", "escrow-public:AAAA", b"short", bytes(32), None):
        with pytest.raises(ConfigurationError):
            EscrowKey(wrong)  # type: ignore[arg-type]


def test_shares_of_another_key(shares: list[str]) -> None:
    """Good shares that open another key than the pinned one are refused, with the pinned one named."""
    pinned = OpenedEscrowKey.generate().public

    with pytest.raises(SharesError, match="make another key"):
        OpenedEscrowKey.from_shares(shares[:3], fits=pinned)
    assert OpenedEscrowKey.from_shares(shares[:3], fits=OpenedEscrowKey(KEY).public).kek == KeyBytes(KEY)


def test_a_left_key_is_wiped() -> None:
    """After the `with` the private half is gone."""
    with OpenedEscrowKey(KEY) as opened:
        pass

    assert bytes(32) == opened.kek.buffer


def test_no_words_in_errors(shares: list[str]) -> None:
    """No error, `repr` or pickle shows a word of a share, beyond the two that name its ceremony."""
    words = shares[0].split()
    share = CustodianShare(shares[0])
    said = [repr(share)]
    for text in (
        " ".join([*words[:-1], "academic"]),
        " ".join([*words[:-1], "qwerty"]),
        " ".join(words[:-1]),
    ):
        with pytest.raises(SharesError) as raised:
            CustodianShare(text)
        said.append("".join(traceback.format_exception(raised.value)))
        frame = raised.tb
        while frame is not None:
            if "sqlalchemy_envelope" in frame.tb_frame.f_code.co_filename:
                said.append(repr(frame.tb_frame.f_locals))
            frame = frame.tb_next
    secret = " ".join(words[5:12])

    assert not any(secret in text or "qwerty" in text for text in said)
    with pytest.raises(TypeError):
        pickle.dumps(share)
