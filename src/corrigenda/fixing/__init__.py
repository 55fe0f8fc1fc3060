"""From a file of corrections to a checked patch: read, understand, search, edit, guard, report."""
