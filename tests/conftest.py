"""What every test wants."""

import logging

logging.getLogger("torch.distributed").setLevel(logging.WARNING)  # it tells every file of every checkpoint at DEBUG
