"""What train.py stands on: the data, the start, callbacks, devices."""
