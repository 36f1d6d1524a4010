"""The parts of the report: reading a sweep, its numbers, its pictures, and how its setting differs from the paper's."""
