"""kasou: a virtual machine monitor that `pip install` brings."""

__version__ = "0.1.0"
