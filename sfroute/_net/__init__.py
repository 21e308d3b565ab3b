"""Connections to the servers, what they may send, and which primary serves a slot."""
