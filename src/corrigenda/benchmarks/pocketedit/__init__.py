"""PocketEdit: a benchmark drawn from the almanac."""
