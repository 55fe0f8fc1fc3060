"""The data sets of KnowEdit."""
