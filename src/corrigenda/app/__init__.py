"""The local web app: corrections made, looked into, compared, undone and exported in a browser."""
