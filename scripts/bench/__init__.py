"""Benchmarks: `harness` times contestants, every other file is a subject of `scripts.benchmark`."""
