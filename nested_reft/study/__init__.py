"""What is done with a whole study: to start one, to check it, and to see how far it is."""
