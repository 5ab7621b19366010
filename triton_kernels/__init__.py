"""Sparse tensors, voxelization, convolution and batch norm: Triton kernels on GPUs, plain PyTorch elsewhere."""

from triton_kernels.modules import BatchNorm, SparseConv3d, SparseConvTranspose3d, SparseTensor, cat, to_points
from triton_kernels.voxelize import CartesianGrid, CylindricalGrid, Voxels, voxelize

__all__ = [
    "BatchNorm",
    "CartesianGrid",
    "CylindricalGrid",
    "SparseConv3d",
    "SparseConvTranspose3d",
    "SparseTensor",
    "Voxels",
    "cat",
    "to_points",
    "voxelize",
]
