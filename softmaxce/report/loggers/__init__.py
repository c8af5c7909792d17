"""Training runs in other programs' logs: TensorBoard, MLflow, Weights & Biases. Each library is an optional extra."""
