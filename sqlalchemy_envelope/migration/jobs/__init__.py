"""The work on a chunk of rows: encrypt, compare, move back, re-encrypt, repair.

Nothing here commits, waits, tries again, or knows that there are other chunks or workers.
"""
