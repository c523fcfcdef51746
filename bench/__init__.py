"""The benchmark suite of the repository: `make bench`, `make bench-quick`, and docs/benchmarks.md from a run's JSON.

What is measured and how is in `lolrt.bench`, which is installed and serves `lolrt bench` too. Here is what a user of the package does not
need: the suite as pytest-benchmark runs it, the published models to measure against, the disassembly, and the report.
"""
