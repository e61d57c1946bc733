"""The commands under `migrate`: their options, their progress, their reports, and what Ctrl-C does.

Nothing here decides what a migration may do: a command calls one step of `Migrator` and prints what it tells.
"""
