"""What generate.py stands on: modes, evaluation, the page, the app, export."""
