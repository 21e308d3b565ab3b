"""Placement: the right pod, and off a dead one; with pods and gateways as processes of their own."""
