"""Other tasks, asked of a model before and after edits."""
