"""What train.py stands on: its data, its devices, its records."""
