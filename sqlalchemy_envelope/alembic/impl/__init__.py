"""How each operation of `ops` is run on a database.

Nothing here writes revisions or compares models with a database: `render` and `compare` do that.
"""

from sqlalchemy_envelope.alembic.impl import indexes, pairs, single, values

__all__ = ["indexes", "pairs", "single", "values"]
