"""What a study will cost before it runs: jobs, memory, time and disk, and the smallest delta that it can resolve."""
