"""What train.py stands on: the data, the start, callbacks, the flows, devices."""
