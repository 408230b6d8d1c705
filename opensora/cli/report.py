"""Errors as sentences, exit codes that are true."""

import sys
import traceback
from collections.abc import Callable

from opensora.errors import OpenSoraError


def run_main(command: Callable[[], int]) -> int:
    """Run `command`; an error the user can act on is one line on stderr, anything else keeps its traceback."""
    try:
        return command()
    except OpenSoraError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
