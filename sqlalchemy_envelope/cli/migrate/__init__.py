"""The commands under `migrate`: their options, their progress, their reports, and the effect of Ctrl-C.

Nothing here decides what a migration may do: a command calls a step of `Migrator` and prints its report.
"""
