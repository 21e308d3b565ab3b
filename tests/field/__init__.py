"""Faults that happened to users of other clients, each on a real server where one can be made to show it."""
