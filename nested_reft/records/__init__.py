"""The records of the stages: files, and MLflow as their mirror."""
