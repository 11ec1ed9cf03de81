"""From the files of the stages to the statistics, tables, figures and captions of a study."""
