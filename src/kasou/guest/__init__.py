"""What runs inside a machine, or is handed to it: firmware, kernels, file formats.

Reading order:

- `elf`           RISC-V ELF64 programs: segments, entry, symbols
- `kernel_image`  Linux kernels: `Image`, compressed or wrapped
- `initramfs`     the cpio archive that a kernel unpacks into its first root
- `sbi`           the built-in firmware's calls
- `kernels`       small kernels of kasou's own, in assembly
"""
