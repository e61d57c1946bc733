"""Access to a table of a migration: its columns, rows, triggers and errors, and the state tables, which
record how far the migration is.

Nothing here decides the next step, and nothing here encrypts or decrypts.
"""
