"""The trained model: base model and LoRA adapter, log-probabilities, the training phase."""
