"""Modules in the skip connections of a U-Net: the network, the retrofit, and published modules to compare with."""
