"""Endpoints: who a run sends its requests to, and which of them an attempt goes to.

body       the request as one endpoint wants it: its own name of the model, its own params
endpoint   one address with one key: client, limiter, weight
target     one model at one provider, with one endpoint or several; picks among them
route      the targets of a run: balance, failover, fallback
registry   makes clients and limiters, and closes them
"""
