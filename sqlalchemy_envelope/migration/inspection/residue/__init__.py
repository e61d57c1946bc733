"""Where plaintext of a column still lies after a migration.

What every database is asked for is in `search`; what one kind of database alone has is in the file of its
name.
"""

from sqlalchemy_envelope.migration.inspection.residue.places import Residue
from sqlalchemy_envelope.migration.inspection.residue.search import where_plaintext_remains

__all__ = ["Residue", "where_plaintext_remains"]
