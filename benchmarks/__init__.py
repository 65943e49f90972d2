"""What the package's figures rest on: `python -m benchmarks.<name>`, one module a question."""
