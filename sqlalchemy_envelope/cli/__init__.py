"""The command line: `sqlalchemy-envelope`. Needs the extra `cli`; the library itself never imports it."""

import sys

_MISSING = "The command line needs click and rich: pip install 'sqlalchemy-envelope[cli]'"


def main() -> None:
    """Run the command line. Without its two packages, say in a single line how to get them."""
    try:
        import click  # noqa: F401 - imported here, so that importing this package costs nothing
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(_MISSING)
    from sqlalchemy_envelope.cli.group import commands

    commands(prog_name="sqlalchemy-envelope")
