"""Programs for developers that need modules of their own; none of it is in the wheel."""
