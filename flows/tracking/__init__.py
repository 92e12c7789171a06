"""MLflow: how good each round is."""
