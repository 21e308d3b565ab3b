"""Cached lookups: the local cache, flights, and the tracked connections that carry them."""
