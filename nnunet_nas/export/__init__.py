"""A trained configuration as a folder that predicts without torch, proven equal to nnU-Net before it is called done."""
