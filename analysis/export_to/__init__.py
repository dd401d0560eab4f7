"""The formats that a model is exported to, one file per format; `analysis/export.py` is the command."""
