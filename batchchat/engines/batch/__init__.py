"""The batch engine: requests go to a provider's Batch API, many in one file, at a lower price."""
