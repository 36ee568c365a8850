"""Limits and budgets that several processes share, on one machine or on several.

    messages      what a process and the keeper of a limit say to each other
    keeper        the one controller that all ask, and whose turn it is
    keeper_bytes  a keeper as bytes
    file          a keeper in a locked file: one machine, no server
    limiter       what a run uses in place of its own limiter
    broker        keepers, and a budget, behind a socket: several machines, or the workers of a coordinator
    link          the way of a process to a broker

A run finds all of it by itself if its job says `limits: {shared: true}` or `limits: {shared: "HOST:PORT"}`. Who starts
worker processes opens a broker for them in its own event loop, and hands on its address and secret:

    async with serve_broker(listen="unix:/run/user/1/x", token=token, budget=budget) as broker:      # coordinator
        start_workers("--set", f"limits.shared={broker.address}", environ={"BATCHCHAT_BROKER_TOKEN": token})

    async with connect(address, token=token) as link, link.budget() as budget:                      # worker
        await run_job(job, budget=budget)

(`serve_broker` is in `broker`, `connect` in `link`.) The worker's limits need no more than its job's `limits.shared`.
Its budget is None if the broker has none.

A keeper grants permits that expire (see `keeper`), so a process that dies, stalls or loses its connection never lets
the others pass a limit. What it had reserved of a budget counts as spent.
"""
