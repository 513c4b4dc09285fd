"""Distillation: a configuration learns from a trained network's logits beside the labels."""
