"""Scorers: what turns one answer into a number, and judges, which ask a model for it."""
