"""The module that nnU-Net finds through `nnUNet_extTrainer`; it only re-exports trainers from the installed package.

nnU-Net imports every module in the folder that the variable names and drops it from `sys.modules` again. Trainers are
therefore defined in `nnunet_nas` proper, where they can be pickled, and this folder holds nothing else. XTinyU-Net
needs no trainer: its configurations train with stock nnU-Net.
"""

from nnunet_nas.methods import METHODS, part

globals().update({str(method.trainer_name): part(method.trainer) for method in METHODS.values() if method.trainer})
