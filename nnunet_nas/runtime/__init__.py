"""Prediction without torch and without nnU-Net: what an exported folder needs on the machine where it is used.

Only NumPy, SciPy, ONNX Runtime and what reads the images (SimpleITK, nibabel, imageio or tifffile, each where a model
asks for it) are imported here. Everything follows nnU-Net v2's inference step by step, half precision of the summed
logits included, so that labels agree with `nnUNetv2_predict`.
"""
