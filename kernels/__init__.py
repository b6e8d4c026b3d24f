"""
Operations that know no model, each faster or smaller than the plain torch that it is tested against.

Modules in here import one another and nothing else of the project.
"""

import os

# WIGGLE_KERNEL=plain, in the environment at the first import, makes plain torch compute everything: a way to tell
# whether a kernel is at fault.
PLAIN = os.environ.get("WIGGLE_KERNEL") == "plain"
