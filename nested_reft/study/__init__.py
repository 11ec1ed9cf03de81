"""What is done with a whole study: start one from a model and data of one's own."""
