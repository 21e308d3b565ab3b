"""Tests of what speaks HTTP: the middleware, and the programs in examples/."""
