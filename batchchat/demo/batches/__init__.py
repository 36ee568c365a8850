"""The demo provider's Batch API: files, batches, their results, and faults by option.

| module | its idea |
|---|---|
| `options.py` | what can be chosen: pace, folder, dialect, faults |
| `clock.py` | epoch seconds that follow anyio's clock |
| `files.py` | uploaded and written files, on disk |
| `checking.py` | reading an input file, and what is wrong with it |
| `work.py` | the thread that answers the lines of batches |
| `batches.py` | batches: made, looked at, cancelled, ended with their files |
| `batch_timeline.py` | where a batch stands, by the clock |
| `dialects.py` | how the providers' shapes differ |
| `routes.py` | the HTTP routes |
"""
