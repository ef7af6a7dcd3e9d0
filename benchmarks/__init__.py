"""Benchmarks of the service: each compares with a stated goal, on the machine that runs it."""
