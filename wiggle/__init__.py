"""What the scripts share. Modules in here may import model_bio.py and kernels/, and never a script."""
