"""Benchmarks of fused models, and the grading of their answers."""
