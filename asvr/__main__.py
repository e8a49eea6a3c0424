"""``python -m asvr COMMAND`` is ``asvr COMMAND``."""

from asvr.commands.main import main

if __name__ == "__main__":
    main()
