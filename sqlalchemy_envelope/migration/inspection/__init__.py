"""Find obstacles before a migration, and plaintext that remains after it, on each kind of database.

Nothing here leaves a change in the database, or opens a value.
"""
