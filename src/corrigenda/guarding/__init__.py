"""Paired measurement of what an edit must not change, and a verdict: free, costly or refused."""
