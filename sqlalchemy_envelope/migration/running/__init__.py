"""How a job gets over all rows: ranges of keys, workers, rests, retries and reports.

Nothing here knows the work of a chunk, or the step of a migration that the work belongs to.
"""
