"""What a step of a migration is made of: what it requires, what it changes in the schema, what it notes.

Nothing here decides the order of the steps: `Migrator` does.
"""
