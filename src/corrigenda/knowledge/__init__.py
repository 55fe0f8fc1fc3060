"""Facts of the almanac that a model knows, and trials of edits of them."""
