"""A suite file: its variants, scorers and judges, read and checked."""
