"""Obstacles to a migration, found in the database before anything is changed.

`search` has the questions for every database. The questions for a single kind of database are in the file
of its name.
"""

from sqlalchemy_envelope.migration.inspection.obstacles.search import find_obstacles

__all__ = ["find_obstacles"]
