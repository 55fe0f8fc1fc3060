"""T-Patcher."""
