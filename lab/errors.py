"""Owns the one exception of the lab that a person is meant to read; it handles none."""


class LabError(Exception):
    """Says in one message what was found, what the rule is, why, and what to do about it."""
