"""Encoders of image classification in nnU-Net's U-Net, to search and compare on."""
