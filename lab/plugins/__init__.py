"""Stand-ins for resource plugins that cannot be had; unused where the official one is present."""
