"""The names of DeepSpeed for programs that import them, each handed on to `zeropage`. There is no logic here.

`_names.py` is the table; a module that it does not list does not exist, and a name that a module does not have is an
error that says so.
"""

import sys

from zeropage.alias import VERSION as __version__  # noqa: F401
from zeropage.compat import parameter_view

from . import _names

sys.meta_path.append(_names.Finder())
__getattr__ = _names.lookup(__name__)

parameter_view.install()
