"""Machine learning: train, evaluate, registry, serve."""
