"""The key hierarchy, slots and keyring. Knows no database: rows come and go as frozen records."""
