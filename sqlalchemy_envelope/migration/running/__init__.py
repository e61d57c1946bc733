"""How a job gets over all rows: ranges of keys, one worker or many, rests, retries and reports.

Nothing here knows what a chunk's work is, or which step of a migration it belongs to.
"""
