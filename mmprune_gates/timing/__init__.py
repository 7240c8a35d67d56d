"""Measured latencies: of ops at several widths, and of whole models."""
