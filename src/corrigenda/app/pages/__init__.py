"""The pages of the app, one module each: fields, buttons, and what they show."""
