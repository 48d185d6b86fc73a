"""Checks of exercises: what they compare, under which conditions, and what they say.

`checker.py` is the way in: `@check("1.1", "split_heads")` over a function of asserts.
"""
