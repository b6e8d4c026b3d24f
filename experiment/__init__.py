"""What compare.py is made of. Modules in here may import train.py, wiggle/, model_bio.py and kernels/."""
