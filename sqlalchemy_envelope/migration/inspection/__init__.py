"""What will hurt before a migration, and where plaintext remains after it, found for each kind of database.

Nothing here leaves a change in the database, or opens a value.
"""
