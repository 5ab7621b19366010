"""Versions, devices, backends and teachers: what a bug report needs."""

import importlib.metadata
import platform

import torch

from slidr.config import Env
from slidr.pooling import POOLING_BACKEND
from slidr.teachers import TEACHERS
from triton_kernels import backend

PACKAGES = ("torch-scatter", "triton", "numpy", "pillow", "scikit-image", "pydantic")


def run(settings: Env) -> None:
    """Print the environment."""
    print(f"python {platform.python_version()} on {platform.platform()}")
    print(f"torch {torch.__version__}")  # with what it was built for, which its metadata does not tell
    for name in PACKAGES:
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} not installed")
    for i in range(torch.cuda.device_count()):
        print(f"cuda:{i} {torch.cuda.get_device_name(i)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"engine: {backend.describe(device)}\npooling: {POOLING_BACKEND}\nteachers:")
    print("  (--teacher_weights FILE: .pth or .safetensors, of a ViT also those of Hugging Face and timm)")
    for name, entry in TEACHERS.items():
        print(f"  {name:<24} {entry.where(settings.weights_folder)}")
