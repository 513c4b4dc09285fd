"""Prediction without torch and without nnU-Net: what an exported folder needs on the machine where it is used.

Only NumPy, SciPy, ONNX Runtime and what reads the images (SimpleITK, nibabel, imageio or tifffile, each where a model
asks for it) are imported here. Everything follows nnU-Net v2's inference step by step, half precision of the summed
logits included, so that labels agree with `nnUNetv2_predict`.

From Python, with the package installed or an exported `predict.pyz` in `sys.path`:

    from nnunet_nas.runtime.predictor import Predictor

    predictor = Predictor(Path("exported_folder"))
    labels = predictor.predict([Path("case_0000.nii.gz")], Path("case.nii.gz"))    # the file is optional
    labels = predictor.predict_array(image, spacing)    # (c, z, y, x) and mm per voxel, (z, y, x)
"""
