"""IAC and IAC-LTH: searched cells in the skip connections of a trained, frozen U-Net."""
