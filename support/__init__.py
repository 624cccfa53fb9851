"""What the scripts stand on: settings, the data set on disk, audio, phase recovery, workers."""
