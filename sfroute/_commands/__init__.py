"""Commands sent to the store: writes, scripts and batches, with deadlines and retries."""
