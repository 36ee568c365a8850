"""The embedded demo provider: a real HTTP server that speaks Chat Completions as Scaleway does.

It speaks the Batch API, too, as OpenAI does or as another provider, by option.

It is the default provider of the sample jobs, a server of its own (`batchchat demo-server`) and the double in tests.
What it does follows from its options and the requests alone.
"""

from __future__ import annotations

from batchchat.demo.app import Demo, DemoStats, create_app
from batchchat.demo.batches.options import BATCH_FAULTS, BatchOptions, read_batch_fault
from batchchat.demo.keys import KeyFileError
from batchchat.demo.server import DemoServer, serve
from batchchat.demo.server_options import FAULTS, DemoOptions

__all__ = [
    "BATCH_FAULTS",
    "FAULTS",
    "BatchOptions",
    "Demo",
    "DemoOptions",
    "DemoServer",
    "DemoStats",
    "KeyFileError",
    "create_app",
    "read_batch_fault",
    "serve",
]
