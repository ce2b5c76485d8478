"""Benchmark scripts, run from the repository root: ``python -m benchmarks.likeness`` and so on (results/, LOG.md)."""
