"""From a row of the database to an attribute: values are compared with their row's owner and opened.

Nothing here writes a value.
"""
