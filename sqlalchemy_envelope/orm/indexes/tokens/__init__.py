"""Token indexes: they find texts by what these contain, by tags in a table beside the row's.

Nothing about how a statement is sent may come in here: `writing` keeps the tags, and `reading` compares
candidates.
"""
