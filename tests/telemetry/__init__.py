"""Tests of what a router tells OpenTelemetry."""
