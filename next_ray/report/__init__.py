"""What people see of a run: console, JSONL, TensorBoard, final table, dry run."""
