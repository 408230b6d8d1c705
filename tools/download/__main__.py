"""The command `python -m tools.download`."""

from tools.download.download import PACKAGES, check_names, download
from tools.runner import run

if __name__ == "__main__":
    run(download, packages=PACKAGES, check=check_names, needs_files=False)
