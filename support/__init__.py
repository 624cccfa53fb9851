"""What the scripts stand on: files that survive faults and strangers, workers, the command line."""
