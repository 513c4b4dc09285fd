"""Trained models compared on the same cases: differences, how sure they are, and what each model costs."""
