"""What an encrypted column declares, and how its values become bytes.

Nothing here reads or writes the database.
"""
