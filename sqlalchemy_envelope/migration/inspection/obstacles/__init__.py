"""What will hurt in a migration, found in the database before anything is changed.

What every database is asked for is in `search`; what one kind of database alone has is in the file of its
name.
"""

from sqlalchemy_envelope.migration.inspection.obstacles.search import find_obstacles

__all__ = ["find_obstacles"]
