"""The parts of a migration's step: its requirements, its changes to the schema, and its records.

Nothing here decides the order of the steps: `Migrator` does.
"""
