"""DiNTS: differentiable search of a multi-resolution topology (He et al., CVPR 2021)."""
