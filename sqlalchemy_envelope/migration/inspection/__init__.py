"""What will hurt before a migration, and where plaintext remains after it, found for each kind of database.

Nothing here changes the database or opens a value.
"""
