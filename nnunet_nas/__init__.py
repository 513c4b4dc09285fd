"""Neural architecture search for nnU-Net v2: every search ends in a plans configuration that stock nnU-Net trains.

Importing the package is cheap on purpose (no torch, no nnU-Net): the command line answers `--help` at once, and
nnU-Net imports us only for the networks that its plans name.
"""

__version__ = "0.1.0"
