"""Contracts that mypy checks and nobody runs."""
