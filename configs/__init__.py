"""The configuration: YAML groups, and the same configuration as checked dataclasses. Imports no torch."""
