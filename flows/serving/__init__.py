"""Servers, workers, deployments: where stages run."""
