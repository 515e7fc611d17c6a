"""The model that is trained: base model and LoRA adapter, log-probabilities, and the training phase."""
