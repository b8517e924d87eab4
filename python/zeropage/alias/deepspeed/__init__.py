"""The names of DeepSpeed for programs that import them. `zeropage` provides each; there is no logic here.

`_names.py` has the table. Modules that it does not list do not exist, and a missing name is an error that explains
this.
"""

import sys

from zeropage.alias import VERSION as __version__  # noqa: F401
from zeropage.compat import parameter_view

from . import _names

sys.meta_path.append(_names.Finder())
__getattr__ = _names.lookup(__name__)

parameter_view.install()
