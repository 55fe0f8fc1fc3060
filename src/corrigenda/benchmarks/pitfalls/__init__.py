"""ConflictEdit and RoundEdit."""
