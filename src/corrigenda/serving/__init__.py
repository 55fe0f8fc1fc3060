"""An HTTP server in the form of OpenAI's for a model and its edits; imported only when used."""
