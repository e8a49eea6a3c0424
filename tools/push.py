"""Upload a model to the Hugging Face Hub: python tools/push.py FOLDER ORG/NAME"""

from asvr.commands.cli import run_tool
from asvr.commands.push import main

if __name__ == "__main__":
    run_tool(main)
