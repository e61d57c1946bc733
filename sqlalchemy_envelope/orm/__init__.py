"""Column types, sessions and key tables: where SQLAlchemy meets the keys."""
