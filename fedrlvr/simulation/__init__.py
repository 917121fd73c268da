"""A whole federation, or a sweep of them, in one process."""
