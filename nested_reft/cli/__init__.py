"""The command line: one sub-command per stage of a study, and a few for people."""
