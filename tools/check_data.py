"""Check all data of a config before training: python tools/check_data.py CONFIG"""

from asvr.commands.check_data import main
from asvr.commands.cli import run_tool

if __name__ == "__main__":
    run_tool(main)
