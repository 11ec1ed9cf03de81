"""The stages of a study, one file each; a stage reads settings and files and leaves a folder of files."""
