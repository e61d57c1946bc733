"""`sqlalchemy-envelope keys generate escrow` and `keys escrow`: the ceremonies of an escrow key, offline.

The public half is printed last, after every share: whoever has it to pin knows that all shares are there. A
share is never an argument: others see the arguments of a process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sqlalchemy_envelope.cli.output import LEFT, REFUSED, Group, OutputError, require_output, say
from sqlalchemy_envelope.exceptions import ConfigurationError, SharesError
from sqlalchemy_envelope.keys.custodians import MOST_CUSTODIANS, CustodianShare
from sqlalchemy_envelope.keys.escrow import PUBLIC, EscrowKey, OpenedEscrowKey
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_WORDS_IN_LINE = 11

_custodians = click.option(
    "--custodians", required=True, type=click.IntRange(2, MOST_CUSTODIANS), help="How many shares to make."
)
_threshold = click.option(
    "--threshold", required=True, type=click.IntRange(2, MOST_CUSTODIANS), help="How many of them open it."
)
_folder = click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write each share to a file of its own there, in place of printing it.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_files = click.argument("files", nargs=-1, metavar="[FILE]...")
_fits = click.option("--fits", metavar="PUBLIC_KEY", help="The key that is pinned: refuse shares of another.")


class _RefusedError(click.ClickException):
    exit_code = REFUSED


@click.group(cls=Group)
def escrow() -> None:
    """Open, check and share an escrow key.

    Each command reads shares from files, from standard input (-) with an empty line between two shares, or
    asks for them. Run it on a machine without a network.
    """


@click.command("escrow")
@_custodians
@_threshold
@_folder
@_json
def generate_escrow(custodians: int, threshold: int, folder: Path | None, as_json: bool) -> None:
    """Make an escrow key: a share for each custodian, then the public half to pin.

    Any THRESHOLD of the shares open it, fewer tell nothing. Nobody sees the whole key, and it is not stored.
    The public half comes last: if you do not see it, a share may be missing, so begin again.
    """
    require_output()
    with OpenedEscrowKey.generate() as key:
        _hand_out(key, custodians, threshold, folder, as_json=as_json)


@escrow.command("open")
@_files
@_fits
@click.option(
    "--to", "file", type=click.Path(path_type=Path), help="Write the key to this file, which must not exist."
)
@_json
def open_key(files: Sequence[str], fits: str | None, file: Path | None, as_json: bool) -> None:
    """Open an escrow key with its custodians' shares, and print it.

    Whoever has the printed key reads the data of every owner with an escrow slot. With --to, it goes to a
    file that its user alone can read; delete the file after use.
    """
    require_output()
    with _opened(files, fits) as key:
        if file is not None:
            _write(file, key.text + "\n")
        values = {"public_key": key.public.text, "private_key": None if file else key.text}
        if file is not None:
            values["file"] = str(file)
        _tell(f"{file}: the private half of {key.public.text}" if file else key.text, values, as_json=as_json)


@escrow.command()
@_files
@_fits
@_json
def check(files: Sequence[str], fits: str | None, as_json: bool) -> None:
    """Check shares without opening anything: for mistakes, and that they make the pinned key.

    One custodian alone can look for mistakes. Exits with 1 if there are too few shares to check the key.
    """
    require_output()
    pinned = _pinned(fits)
    shares = _read(files)
    first = shares[0]
    values: dict[str, Any] = {
        "ceremony": first.ceremony,
        "threshold": first.threshold,
        "shares": [share.number for share in shares],
        "public_key": None,
    }
    if len(shares) == 1:
        text = (
            f"{first.name} has no mistake: number {first.number} of ceremony {first.ceremony!r}. "
            f"{counted(first.threshold, 'share')} are needed to check the key."
        )
        _tell(text, values, as_json=as_json)
        sys.exit(LEFT)
    with _joined(shares, pinned) as key:
        values["public_key"] = key.public.text
    text = f"{counted(len(shares), 'share')} of ceremony {first.ceremony!r} make {values['public_key']}"
    _tell(text + (", as pinned" if pinned else ""), values, as_json=as_json)


@escrow.command()
@_files
@_fits
@_custodians
@_threshold
@_folder
@_json
def reshare(
    files: Sequence[str],
    fits: str | None,
    custodians: int,
    threshold: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Make new shares of the same key, for other custodians.

    The pinned public half stays. Shares of the old ceremony still open the key if as many as it needed come
    together: collect and destroy them. If you cannot, make a new key.
    """
    require_output()
    with _opened(files, fits) as key:
        _hand_out(key, custodians, threshold, folder, as_json=as_json)


def _hand_out(
    key: OpenedEscrowKey, custodians: int, threshold: int, folder: Path | None, *, as_json: bool
) -> None:
    """Give each custodian a share, and then print the public half."""
    try:
        shares = key.shares(custodians=custodians, threshold=threshold)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    read = [CustodianShare(text) for text in shares]
    for start in range(custodians - threshold + 1):  # before anybody relies on them
        _joined(read[start : start + threshold], key.public).wipe()
    public = key.public.text
    texts = [_page(text, one, custodians) for text, one in zip(shares, read, strict=True)]
    files = [] if folder is None else _write_shares(folder, texts)
    try:
        if as_json:
            say(json.dumps(_values(read[0], shares, files, public), indent=2))
        else:
            if files:
                _say_files(files)
            else:
                _show(texts)
            say(public)
    except OutputError as error:
        if not files:
            raise
        raise OutputError(
            f"{error.message} The shares are in {folder}; `keys escrow check` with these files prints the "
            "public half."
        ) from None


def _values(
    first: CustodianShare, shares: Sequence[str], files: Sequence[Path], public: str
) -> dict[str, Any]:
    numbered: list[dict[str, Any]] = [
        {"number": number, "file": str(files[number - 1])} if files else {"number": number, "share": text}
        for number, text in enumerate(shares, 1)
    ]
    return {
        "ceremony": first.ceremony,
        "threshold": first.threshold,
        "shares": numbered,
        "public_key": public,
    }


def _say_files(files: Iterable[Path]) -> None:
    for file in files:
        say(str(file))


def _show(texts: Iterable[str]) -> None:
    """Print the shares; on a terminal one at a time, so that each custodian sees one alone."""
    alone = sys.stdin.isatty() and sys.stdout.isatty()
    for text in texts:
        if alone:
            click.pause("The next share is shown when its custodian alone is here and presses a key.")
            click.clear()
        say(text)
        if alone:
            click.pause("Written down, and compared? The screen is cleared then. Press a key.")
            click.clear()


def _page(text: str, share: CustodianShare, custodians: int) -> str:
    """A share as it is printed or stored: a line for people, and the words."""
    words = text.split()
    lines = [" ".join(words[at : at + _WORDS_IN_LINE]) for at in range(0, len(words), _WORDS_IN_LINE)]
    told = f"# Share {share.number} of {custodians} of an escrow key; any {share.threshold} open it."
    return "\n".join([told, *lines, ""])


def _write_shares(folder: Path, texts: Sequence[str]) -> list[Path]:
    """Write all shares, each to a new file, or none."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}. No key was made.") from None
    files = [folder / f"escrow-share-{number}-of-{len(texts)}.txt" for number in range(1, len(texts) + 1)]
    written: list[Path] = []
    try:
        for file, text in zip(files, texts, strict=True):
            _write(file, text)
            written.append(file)
    except OutputError:
        for file in written:
            file.unlink()
        raise
    return files


def _write(file: Path, text: str) -> None:
    """Write a new file that its user alone can read. If it cannot be written whole, there is no file."""
    try:
        number = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise OutputError(f"{file}: {error.strerror}.") from None
    try:
        with os.fdopen(number, "w", encoding="ascii") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        file.unlink()
        raise OutputError(f"{file}: {error.strerror}.") from None


def _opened(files: Sequence[str], fits: str | None) -> OpenedEscrowKey:
    pinned = _pinned(fits)
    return _joined(_read(files), pinned)


def _joined(shares: list[CustodianShare], fits: EscrowKey | None) -> OpenedEscrowKey:
    try:
        return OpenedEscrowKey.of(shares, fits=fits)
    except SharesError as error:
        _refuse(error)


def _pinned(fits: str | None) -> EscrowKey | None:
    if fits is None:
        return None
    try:
        return EscrowKey(fits)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _read(files: Sequence[str]) -> list[CustodianShare]:
    """Read shares from these files, from standard input, or from a terminal."""
    try:
        if not files and sys.stdin is not None and sys.stdin.isatty():
            return _ask()
        return [
            CustodianShare(text, name) for file in (files or ["-"]) for name, text in _texts(file)
        ] or _refuse(SharesError("No share was given."))
    except SharesError as error:
        _refuse(error)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _ask() -> list[CustodianShare]:
    """Ask for shares, hidden, until there are enough. After a mistake, ask for the share again."""
    shares: list[CustodianShare] = []
    while not shares or len(shares) < shares[0].threshold:
        number = len(shares) + 1
        of = f" of {shares[0].threshold}" if shares else ""
        typed = click.prompt(f"Share {number}{of}, its words (not shown)", hide_input=True, err=True)
        try:
            shares.append(CustodianShare(typed, f"Share {number}"))
        except SharesError as error:
            click.echo(str(error), err=True)
    return shares


def _texts(file: str) -> Iterator[tuple[str, str]]:
    """The shares in a file, each with its name. Empty lines, and lines for people, stand between shares."""
    if file == "-":
        name, text = "standard input", _stdin()
    else:
        name, text = file, _text_of(file)
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith(("#", PUBLIC)):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    shares = [" ".join(lines) for lines in found if lines]
    for number, share in enumerate(shares, 1):
        alone = file != "-" and len(shares) == 1
        yield name if alone else f"Share {number} of {name}", share


def _stdin() -> str:
    if sys.stdin is None:
        raise SharesError("No share was given, and standard input is closed.")
    return sys.stdin.read()


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SharesError(f"{file} is not text.") from None
    except OSError as error:
        if len(file.split()) > 1:
            # Not repeated: it may be a share.
            raise click.UsageError(
                "A share is not given on the command line, where others see it: put it into a file, or give "
                "no file and type it when asked. Treat a share that was typed there as known."
            ) from None
        raise click.UsageError(f"{file}: {error.strerror}.") from None


def _tell(text: str, values: Any, *, as_json: bool) -> None:
    say(json.dumps(values, indent=2) if as_json else text)


def _refuse(error: SharesError) -> NoReturn:
    raise _RefusedError(str(error)) from None
