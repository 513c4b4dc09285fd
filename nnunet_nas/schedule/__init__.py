"""Plain trainings of a length of one's own: what every search has to be compared with."""
