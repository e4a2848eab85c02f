"""The Pulumi command line and its parts, for where none of it can be downloaded."""
