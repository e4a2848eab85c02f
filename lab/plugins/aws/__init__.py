"""The stand-in for the official AWS plugin: the types and look-ups of this program, by boto3.

Each module holds the table rows (`Kind`) of one area; `provider` serves them. What is not in a
table is refused, never ignored. The record it is held to is the provider's documentation and
source, not a measurement against AWS.
"""

from lab.plugins.aws.provider import main

__all__ = ["main"]
