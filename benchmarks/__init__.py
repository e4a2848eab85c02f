"""Comparisons a person runs by hand; each keeps its raw numbers and a plot. None asserts a time."""
