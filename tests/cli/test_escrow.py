"""The offline ceremonies of an escrow key on the command line: shares made, checked, joined and made anew;
what is wrong is refused, nothing is lost in silence, and nothing is written unasked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sqlalchemy_envelope.cli.group import commands
from sqlalchemy_envelope.keys.escrow import EscrowKey, OpenedEscrowKey
from tests.cli.test_commands import COMMAND_LINE


def run(*arguments: object, stdin: str | None = None) -> Result:
    """A command of `keys`, in this process."""
    return CliRunner().invoke(commands, ["keys", *map(str, arguments)], input=stdin)


def made(folder: Path, custodians: int = 5, threshold: int = 3) -> tuple[list[Path], str]:
    """A ceremony into a folder: the files of the shares, and the public half."""
    done = run("generate", "escrow", "--custodians", custodians, "--threshold", threshold, "--to", folder)
    *files, public = done.output.split()
    return [Path(file) for file in files], public


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five shares, any three of which open the key."""
    return made(tmp_path / "ceremony")[0]


def test_a_ceremony(tmp_path: Path) -> None:
    """Shares go to a file each, that its user alone can read; three of them make the key that was printed."""
    files, public = made(tmp_path / "ceremony")
    checked = run("escrow", "check", *files, "--fits", public)
    opened = run("escrow", "open", *files[1:4])

    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 5
    assert checked.exit_code == 0
    assert checked.output.endswith(f"{public}, as pinned\n")
    assert OpenedEscrowKey(opened.output.strip()).public.text == EscrowKey(public).text == public
    assert [tmp_path / "ceremony"] == list(tmp_path.iterdir())


def test_shares_on_standard_output_come_back_on_standard_input() -> None:
    """What the ceremony prints, shares and public half, is what the other commands read; the half is last."""
    printed = run("generate", "escrow", "--custodians", 3, "--threshold", 2).output
    checked = run("escrow", "check", stdin=printed)

    assert checked.output.startswith("3 shares of ceremony")
    assert checked.output.strip().endswith(printed.splitlines()[-1])


def test_json() -> None:
    """Each command prints one document for programs."""
    done = json.loads(run("generate", "escrow", "--custodians", 3, "--threshold", 2, "--json").output)
    shares = "\n\n".join(one["share"] for one in done["shares"][:2])
    checked = json.loads(run("escrow", "check", "--json", stdin=shares).output)
    opened = json.loads(run("escrow", "open", "--json", stdin=shares).output)

    assert checked == {
        **{name: done[name] for name in ("ceremony", "threshold", "public_key")},
        "shares": [1, 2],
    }
    assert OpenedEscrowKey(opened["private_key"]).public.text == done["public_key"] == opened["public_key"]


def test_other_custodians(files: list[Path], tmp_path: Path) -> None:
    """The same key in new shares; old and new do not mix, and each ceremony alone opens it."""
    public = run("escrow", "check", *files[:3]).output.split()[-1]
    done = run(
        "escrow",
        "reshare",
        *files[:3],
        "--fits",
        public,
        "--custodians",
        3,
        "--threshold",
        2,
        "--to",
        tmp_path,
    )
    *new, told = done.output.split()
    mixed = run("escrow", "open", new[0], *files[:2])

    assert public == told == run("escrow", "check", *new[:2]).output.split()[-1]
    assert (mixed.exit_code, "are of two ceremonies" in mixed.output) == (3, True)


def test_what_is_refused(files: list[Path], tmp_path: Path) -> None:
    """Too few, twice the same, mistyped, of another ceremony, of another key: each its own words, exit 3."""
    typo, (others, other_key) = tmp_path / "typo", made(tmp_path / "others")
    typo.write_text(files[2].read_text().replace("\n", " x", 2).replace(" x", "\n", 2)[:-6] + "\n")
    cases = {
        "1 more is needed": files[:2],
        "are the same share": [*files[:2], files[0]],
        "has a mistake|is not in the list|has 32 words": [*files[:2], typo],
        "are of two ceremonies": [*files[:2], others[3]],
        "make another key": [*files[:3], "--fits", other_key],
    }
    for command in ("open", "check"):
        for said, arguments in cases.items():
            done = run("escrow", command, *arguments)

            assert done.exit_code == 3, said
            assert any(one in done.output for one in said.split("|")), done.output
            assert "escrow-private" not in done.output


def test_one_custodian_looks_for_mistakes(files: list[Path]) -> None:
    """A single share is checked for mistakes, and the exit code says that the key was not checked."""
    done = run("escrow", "check", files[3])

    assert (done.exit_code, "has no mistake: number 4" in done.output) == (1, True)


def test_a_share_as_an_argument(files: list[Path]) -> None:
    """Words on the command line are refused and not repeated."""
    words = " ".join(files[0].read_text().split("\n", 1)[1].split())
    done = run("escrow", "open", words)

    assert (done.exit_code, "not given on the command line" in done.output) == (2, True)
    assert words[20:60] not in done.output


def test_the_key_goes_to_a_file_once(files: list[Path], tmp_path: Path) -> None:
    """With `--to`, the key is in a new file of mode 0600 and not on the screen; an old one stays."""
    path = tmp_path / "key"
    done, again = (run("escrow", "open", *files[:3], "--to", path) for _ in range(2))

    assert (done.exit_code, again.exit_code, path.stat().st_mode & 0o777) == (0, 4, 0o600)
    assert "escrow-private" not in done.output + again.output
    assert OpenedEscrowKey.from_file(path).public.text in done.output


def test_no_share_is_written_over(files: list[Path]) -> None:
    """A second ceremony into the same folder makes no key, and leaves the first one's shares."""
    before = [file.read_text() for file in files]
    again = run("generate", "escrow", "--custodians", 5, "--threshold", 3, "--to", files[0].parent)

    assert (again.exit_code, "File exists" in again.output, "escrow-public" in again.output) == (
        4,
        True,
        False,
    )
    assert before == [file.read_text() for file in files]


def test_shares_are_written_all_or_none(tmp_path: Path) -> None:
    """If the last share cannot be written, the first ones are gone again and no public half is printed."""
    (tmp_path / "escrow-share-3-of-3.txt").mkdir()
    done = run("generate", "escrow", "--custodians", 3, "--threshold", 2, "--to", tmp_path)

    assert (done.exit_code, "escrow-public" in done.output) == (4, False)
    assert [file.name for file in tmp_path.iterdir()] == ["escrow-share-3-of-3.txt"]


@pytest.mark.parametrize("output", ["closed", "/dev/full"])
@pytest.mark.parametrize("to_folder", [False, True])
def test_nothing_is_lost_in_silence(tmp_path: Path, output: str, *, to_folder: bool) -> None:
    """Without a standard output, or on a full disk, the command says so; shares that it wrote are named."""
    if output != "closed" and not Path(output).exists():
        pytest.skip("there is no /dev/full")
    folder = tmp_path / "ceremony"
    more = ["--to", str(folder)] if to_folder else []
    line = [sys.executable, "-c", COMMAND_LINE, "keys", "generate", "escrow", "--custodians", "3"]
    script = '"$@" >&-' if output == "closed" else f'"$@" >{output}'
    ran = subprocess.run(
        ["sh", "-c", script, "sh", *line, "--threshold", "2", *more],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    written = output != "closed" and to_folder

    assert (ran.returncode, "cannot be written" in ran.stderr) == (4, True)
    assert folder.exists() == written == (str(folder) in ran.stderr)
    assert not written or run("escrow", "check", *folder.iterdir()).exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of a file's size")
def test_no_share_is_half_written(tmp_path: Path) -> None:
    """If a share's file cannot be written whole, as on a full disk, no file is left, and no public half is
    printed."""
    folder = tmp_path / "ceremony"
    line = [sys.executable, "-c", COMMAND_LINE, "keys", "generate", "escrow", "--custodians", "3"]
    ran = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *line, "--threshold", "2", "--to", str(folder)],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (ran.returncode, ran.stdout) == (4, "")
    assert "escrow-share-1-of-3.txt: File too large." in ran.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("custodians", "threshold"), [(2, 3), (17, 2), (5, 1)])
def test_ceremonies_that_cannot_be(custodians: int, threshold: int) -> None:
    """Wrong usage, before a key is made."""
    done = run("generate", "escrow", "--custodians", custodians, "--threshold", threshold)

    assert (done.exit_code, "escrow-public" in done.output) == (2, False)
