"""What only a machine with cards can show: `make test-gpu`. A plain Python 3.10 runs it, without the project's environment."""
