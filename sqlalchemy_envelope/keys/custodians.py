"""Shares of a key for custodians: any `threshold` of them make the key, fewer tell nothing about it.

A share is 33 words of SLIP-0039, made and read by the library `shamir-mnemonic`:

    | ceremony 2 words | number, threshold 2 words | value 26 words | checksum 3 words |

The two words of the ceremony are the same in all shares that were made together, and others in any other
ceremony. The checksum finds every mistake in up to three words.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError, SharesError
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WORD_COUNT = 33
MOST_CUSTODIANS = 16
"""The most shares that SLIP-0039 can number."""
_CEREMONY_WORDS = 2


class CustodianShare(Uncopied):
    """One custodian's share, read and checked.

    Attributes:
        name: where the share came from, for errors: "share 2", or the name of a file.
        ceremony: the two words that begin all shares of the ceremony; they are no secret.
        number: the number of the share in its ceremony, from 1.
        threshold: how many shares make the key.
    """

    __slots__ = ("_reveal", "ceremony", "name", "number", "threshold")

    @emptying
    def __init__(self, text: str, name: str = "The share") -> None:
        share = _read(text, name)
        self.name = name
        self.ceremony = " ".join(share.words()[:_CEREMONY_WORDS])
        self.number: int = share.index + 1
        self.threshold: int = share.member_threshold
        # In a closure: the library's own share shows its value when it is printed.
        self._reveal: Callable[[], Any] = lambda: share

    def __repr__(self) -> str:
        return f"<CustodianShare {self.number} of ceremony {self.ceremony!r}>"


@emptying
def split(key: KeyBytes, custodians: int, threshold: int) -> list[str]:
    """Make the shares of a key, one text for each custodian.

    Shares of an earlier ceremony go on making the same key, and do not go together with these.

    Raises:
        ConfigurationError: there cannot be so many custodians, or the extra `escrow` is missing.
    """
    if not 2 <= threshold <= custodians <= MOST_CUSTODIANS:
        raise ConfigurationError(
            f"A ceremony has 2 to {MOST_CUSTODIANS} custodians, and needs the shares of 2 or more of them: "
            f"not {threshold} of {custodians}."
        )
    shamir = _shamir()
    # The words of a passphrase, and work against guessing one, have no use for a random key of 256 bits.
    (group,) = shamir.generate_mnemonics(
        1, [(threshold, custodians)], bytes(key.buffer), b"", extendable=True, iteration_exponent=0
    )
    return list(group)


@emptying
def joined(shares: Sequence[CustodianShare]) -> KeyBytes:
    """Make the key of these shares. More shares than needed are checked to fit, too.

    Raises:
        SharesError: there are too few, one is there twice, they are of several ceremonies, or do not fit.
    """
    require_enough(shares)
    first, *more = _keys(shares)
    wrong = [share.name for share, key in more if key != first[1]]
    for _, key in more:
        key.wipe()
    if wrong:
        first[1].wipe()
        raise SharesError(f"{wrong[0]} does not fit the other shares, although it is of their ceremony.")
    return first[1]


def require_enough(shares: Sequence[CustodianShare]) -> None:
    """Require that shares are of one ceremony, each once, and as many as it needs.

    Raises:
        SharesError: they are not.
    """
    if not shares:
        raise SharesError("No share was given.")
    for one, other in pairwise(shares):
        if (one.ceremony, one.threshold) != (other.ceremony, other.threshold):
            raise SharesError(
                f"{one.name} and {other.name} are of two ceremonies: one begins with {one.ceremony!r}, the "
                f"other with {other.ceremony!r}. Use shares that begin with the same two words."
            )
    by_number: dict[int, CustodianShare] = {}
    for share in shares:
        before = by_number.setdefault(share.number, share)
        if before is not share:
            raise SharesError(
                f"{before.name} and {share.name} are the same share, number {share.number}: each custodian "
                "gives another one."
            )
    threshold, count = shares[0].threshold, len(shares)
    if count < threshold:
        raise SharesError(
            f"{counted(threshold, 'share')} of ceremony {shares[0].ceremony!r} make the key, and "
            f"{counted(count, 'was', 'were')} given: {counted(threshold - count, 'more is', 'more are')} "
            "needed."
        )


def _keys(shares: Sequence[CustodianShare]) -> list[tuple[CustodianShare, KeyBytes]]:
    """The key that the first shares make, and the key that each further share makes with them."""
    threshold = shares[0].threshold
    together, further = list(shares[: threshold - 1]), shares[threshold - 1 :]
    return [(share, _joined([*together, share])) for share in further]


def _joined(shares: Sequence[CustodianShare]) -> KeyBytes:
    from shamir_mnemonic.utils import MnemonicError

    shamir = _shamir()
    group = shamir.ShareGroup()
    for share in shares:
        group.add(share._reveal())
    try:
        return KeyBytes(shamir.recover_ems({0: group}).decrypt(b""))
    except (MnemonicError, ValueError):
        raise SharesError(
            f"The shares of ceremony {shares[0].ceremony!r} do not fit together: at least one of them was "
            "not made with the others."
        ) from None


def _read(text: str, name: str) -> Any:
    _shamir()  # says what to install
    from shamir_mnemonic import wordlist
    from shamir_mnemonic.share import Share
    from shamir_mnemonic.utils import MnemonicError

    if not isinstance(text, str):
        raise SharesError(f"{name} is not text.")
    words = text.lower().split()
    if len(words) != WORD_COUNT:
        raise SharesError(f"{name} has {counted(len(words), 'word')}; a share has {WORD_COUNT}.")
    for number, word in enumerate(words, 1):
        if word not in wordlist.WORD_INDEX_MAP:
            raise SharesError(f"{name}: word {number} is not in the list of words of SLIP-0039.")
    try:
        share = Share.from_mnemonic(" ".join(words))
    except MnemonicError:
        raise SharesError(
            f"{name} has a mistake: its words do not fit its checksum. Compare each word with the paper."
        ) from None
    is_ours = share.group_count == 1 and share.member_threshold > 1 and share.extendable
    if not is_ours or len(share.value) != KEY_SIZE:
        raise SharesError(f"{name} is a share of something else than an escrow key.")
    return share


def _shamir() -> Any:
    try:
        from shamir_mnemonic import shamir
    except ModuleNotFoundError as error:
        if error.name != "shamir_mnemonic":
            raise
        raise ConfigurationError(
            "The shares of custodians need shamir-mnemonic: pip install 'sqlalchemy-envelope[escrow]'"
        ) from None
    return shamir
