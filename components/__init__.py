"""The only code that creates resources. Components never read configuration."""
