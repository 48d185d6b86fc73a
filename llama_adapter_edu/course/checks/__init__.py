"""Checks of exercises: what they compare, under which conditions, and what they say."""
