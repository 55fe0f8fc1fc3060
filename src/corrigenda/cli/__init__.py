"""The command `corrigenda`: one module per group of commands; torch waits until one runs."""
