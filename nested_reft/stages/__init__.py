"""The stages of a study, one file each; a stage reads settings and files, and writes a folder of files."""
