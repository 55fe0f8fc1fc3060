"""The methods: each a module, its card beside it, its tests in `tests/methods`."""
