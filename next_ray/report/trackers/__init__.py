"""Where metrics go besides the run's own files: TensorBoard, Weights & Biases, MLflow."""
