"""What the project's figures are measured by: python -m benchmarks.<name>."""
