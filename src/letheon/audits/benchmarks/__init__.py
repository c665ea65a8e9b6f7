"""Published benchmarks of unlearning: one file a benchmark, each with the definitions of its own paper and code."""
