"""A laboratory for the limiter: models of servers, each with a rule of its own, on a clock that only counts.

`python -m tests.limits_lab` prints the whole table, `tests/unit/test_limits_lab.py` holds the limiter to it.

    servers     what a server accepts, refuses, and says of it
    simulation  one or several limiters against a server: events in a heap, no waiting
    table       the rows: a server, what it could give, and what a limiter must reach
"""
