"""kasou: a virtual machine monitor that `pip install` brings."""
