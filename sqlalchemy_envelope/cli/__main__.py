"""`python -m sqlalchemy_envelope.cli`, for when the script is not on the path."""

from sqlalchemy_envelope.cli import main

# Worker processes import this file again, under another name.
if __name__ == "__main__":
    main()
