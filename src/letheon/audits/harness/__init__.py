"""letheon and lm-evaluation-harness: letheon's questions as its tasks, and its tasks as a benchmark of letheon."""
