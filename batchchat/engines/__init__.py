"""Engines: what executes requests. `port` is what the run knows of them."""
