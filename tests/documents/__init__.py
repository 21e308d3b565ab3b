"""What the documents say is run, or compared with what it speaks of."""
