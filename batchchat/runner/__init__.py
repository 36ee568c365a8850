"""Runs: preparing a job, feeding an engine, making what it tells durable, and saying how it ended."""
