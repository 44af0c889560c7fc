"""What takes minutes: kills under load, floods, fuzzing, and memory over time. `python -m tests.soak` runs it."""
