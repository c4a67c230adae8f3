"""What runs inside a machine, or is handed to it: firmware, kernels, file formats.

Reading order: `elf`, `sbi`, `kernels`.
"""
