"""Keys that others hold too: granted, adopted, replaced, and taken back after a rollback.

Nothing here reads or writes a value of the application.
"""
