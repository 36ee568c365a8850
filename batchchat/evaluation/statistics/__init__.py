"""The statistics of scores: intervals, tests, comparisons of variants, and reports of classes."""
