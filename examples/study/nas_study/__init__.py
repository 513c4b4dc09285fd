"""What the workflow of a study computes: its grid, one step of it, its cost, its tables and pictures."""
