"""The files of the test vectors: none is missing, each is checked, and `build.py` writes them again."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crypto.vector_cases import load

VECTORS = Path(__file__).parent.parent / "vectors"
COUNTS = {
    "context": 96,
    "derivation": 63,
    "secret": 81,
    "recovery_code": 145,
    "kdf": 110,
    "wrap": 217,
    "sealed": 157,
    "hybrid": 76,
    "value": 215,
    "server_keyring": 59,
    "row_seal": 288,
    "pepper": 46,
    "escrow": 39,
    "emergency": 18,
    "erasure_receipt": 29,
    "ticket": 60,
    "index": 44,
}


Case = dict[str, Any]


@pytest.mark.parametrize("name", COUNTS)
def test_no_case_is_missing(name: str) -> None:
    """Each file holds as many cases as it is known to hold, so that an emptied one does not pass."""
    assert COUNTS[name] == len(load(name))


def test_every_file_is_checked() -> None:
    """No file of vectors lies beside these that no test reads."""
    assert sorted(COUNTS) == sorted(path.stem for path in VECTORS.glob("*.json"))


def test_the_files_are_what_build_writes() -> None:
    """The files come from the specification's own implementation, unedited."""
    build = [sys.executable, str(VECTORS / "build.py"), "--check"]
    run = subprocess.run(build, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


def test_build_imports_nothing_of_the_library() -> None:
    """The specification's implementation is a second one: it runs where the library cannot be imported."""
    blocked = "import sys, runpy; sys.modules['sqlalchemy_envelope'] = sys.modules['sqlalchemy'] = None; "
    program = f"{blocked}sys.argv = ['build.py', '--check']; runpy.run_path({str(VECTORS / 'build.py')!r}, run_name='__main__')"  # noqa: E501
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


def test_javascript_agrees() -> None:
    """A second implementation, in JavaScript on WebCrypto alone, comes to the same bytes in every case."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on PATH: the JavaScript implementation was not run")
    run = subprocess.run([node, str(VECTORS / "verify.mjs")], capture_output=True, text=True, check=False)
    last = run.stdout.splitlines()[-1] if run.stdout else run.stderr

    assert f"{sum(COUNTS.values())} passed, 0 failed" == last
    assert run.returncode == 0
