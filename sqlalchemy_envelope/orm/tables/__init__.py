"""Who owns keys, the mapped tables that hold them, and the statements on those tables.

Nothing here opens a key or knows what is unlocked.
"""
