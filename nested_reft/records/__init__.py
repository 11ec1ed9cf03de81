"""The record of every stage: files first, MLflow as their mirror."""
