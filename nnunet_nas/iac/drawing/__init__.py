"""Pictures of a search for cells: the cell that it found, its progress, and its dynamics."""
