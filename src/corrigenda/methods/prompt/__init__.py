"""The facts in the prompt, all of them: what a user would do first."""
