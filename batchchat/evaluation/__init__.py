"""Evaluation: score what variants of a prompt answered, and say which differences are real.

`scorers` judge single answers, `statistics` and `classification` judge the scores. numpy, scipy and the other
libraries of the extra `batchchat[eval]` are imported by these modules alone: import them late.
"""
