"""What waits for many owners is settled, in batches."""
