"""The command `corrigenda`: one module per group of commands, none of which imports torch before it runs."""
