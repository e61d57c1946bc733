"""What one table is asked and told: its columns, rows, triggers and errors, and the tables that say how far a
migration is.

Nothing here decides what is done next, and nothing here encrypts or decrypts.
"""
