"""Plaintext of a column that remains in the database after a migration.

`search` has the questions for every database. The questions for a single kind of database are in the file
of its name.
"""

from sqlalchemy_envelope.migration.inspection.residue.places import Residue
from sqlalchemy_envelope.migration.inspection.residue.search import where_plaintext_remains

__all__ = ["Residue", "where_plaintext_remains"]
