"""What is done with one chunk of rows: encrypt them, compare them, move them back, encrypt them anew, repair
them.

Nothing here commits, waits, tries again, or knows that there are other chunks or workers.
"""
