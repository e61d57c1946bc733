"""`python -m sqlalchemy_envelope.cli`, where the script is not on the path."""

from sqlalchemy_envelope.cli import main

main()
