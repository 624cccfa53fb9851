"""What the scripts stand on: settings, the data set, audio, phase recovery, the flows, workers."""
