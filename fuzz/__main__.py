"""`python -m fuzz`: run the fuzzers; exits with 1 at the first failure, which names its run."""

import argparse
import faulthandler
import itertools
import logging
import random
import sys
import time
import traceback

from fuzz.hostile_driver import HostileDriver
from fuzz.rigs import RIGS


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=", ".join(RIGS))
    parser.add_argument("--seconds", type=float, default=5, help="for each combination")
    parser.add_argument("--steps", type=int, default=300, help="of a run")
    parser.add_argument("--transport", choices=("mmio", "pci"))
    parser.add_argument("--packed", action="store_true", help="packed rings only")
    parser.add_argument("--seed", type=int, help="one run with this seed")
    options = parser.parse_args()
    if unknown := set(options.devices) - set(RIGS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(RIGS)}")
    logging.disable(logging.WARNING)
    transports = [options.transport] if options.transport else ["mmio", "pci"]
    layouts = [True] if options.packed else [False] if options.seed is not None else [False, True]
    for name, transport, packed in itertools.product(options.devices or RIGS, transports, layouts):
        end, runs = time.monotonic() + options.seconds, 0
        faulthandler.dump_traceback_later(options.seconds + 60, exit=True)  # a device that hangs
        while True:
            seed = random.getrandbits(32) if options.seed is None else options.seed
            try:
                HostileDriver(name, transport, packed, seed).run(options.steps)
            except AssertionError:
                traceback.print_exc()
                return 1
            runs += 1
            if options.seed is not None or time.monotonic() > end:
                break
        print(f"{name:8} {transport:4} {'packed' if packed else 'split':6} {runs:6} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
