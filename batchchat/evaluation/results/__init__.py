"""What an evaluation found: scores of today's rows, the files that hold them, gates for CI."""
