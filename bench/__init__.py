"""What kasou costs, beside QEMU on the same machine in the same run: `python -m bench`.

`programs` (bare-metal loops), `run` (one timed run of either), `__main__` (the table).
"""
