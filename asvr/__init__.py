"""Train vision-language models that also reconstruct the semantic visual tokens of what they see.

Importing the package loads neither torch nor transformers; components register on first use.
"""

__version__ = "0.1.0"
