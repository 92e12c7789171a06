"""The pipeline: Prefect flows, DVC versioning, MLflow tracking and the command line around `cgal`."""
