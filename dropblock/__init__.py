"""DropBlock for PyTorch, to the sampling rule of the paper: operator, module, keep_prob schedule, installation.

Imports torch and nothing else.
"""

import importlib.metadata as _metadata
import warnings as _warnings

from dropblock.baselines import DropConnect, Dropout, DropPath, SpatialDropout, StochasticDepth, drop_together
from dropblock.control import LayerControl
from dropblock.draws import random_mask, random_uniform
from dropblock.foreign import declare_sites, install_into
from dropblock.fractal import FractalDropPath, JoinSite
from dropblock.functional import drop_block1d, drop_block2d, drop_block3d, drop_block_counted
from dropblock.kinds import LAYERS, LayerSpec, install_layers
from dropblock.layers import DropBlock1d, DropBlock2d, DropBlock3d, DropLayer, installed_layers
from dropblock.places import Place, known_places
from dropblock.rates import effective_block, expected_drop, seed_rate
from dropblock.reference import apply_mask, drop_block_reference
from dropblock.schedule import SCHEDULES, KeepProbSchedule, keep_prob_at, keep_prob_in_group
from dropblock.shakedrop import ShakeDrop
from dropblock.sites import Site, declared_sites, install
from dropblock.suggestion import suggest
from dropblock.table import DropRow, SiteRow, drops_text, site_table, table_text

__version__ = "1.0.1"

__all__ = [
    "LAYERS",
    "SCHEDULES",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnect",
    "DropLayer",
    "DropPath",
    "DropRow",
    "Dropout",
    "FractalDropPath",
    "JoinSite",
    "KeepProbSchedule",
    "LayerControl",
    "LayerSpec",
    "Place",
    "ShakeDrop",
    "Site",
    "SiteRow",
    "SpatialDropout",
    "StochasticDepth",
    "apply_mask",
    "declare_sites",
    "declared_sites",
    "drop_block1d",
    "drop_block2d",
    "drop_block3d",
    "drop_block_counted",
    "drop_block_reference",
    "drop_together",
    "drops_text",
    "effective_block",
    "expected_drop",
    "install",
    "install_into",
    "install_layers",
    "installed_layers",
    "keep_prob_at",
    "keep_prob_in_group",
    "known_places",
    "random_mask",
    "random_uniform",
    "seed_rate",
    "site_table",
    "suggest",
    "table_text",
]


def __dir__() -> list[str]:
    """The public names; the modules that define them are details."""
    return sorted([*__all__, "__all__", "__doc__", "__file__", "__name__", "__version__", "compat"])


def _warn_of_namesake() -> None:
    """Warn if the distribution `dropblock` of PyPI is installed beside this one: both write into the same folder."""
    try:
        version = _metadata.version("dropblock")
    except _metadata.PackageNotFoundError:
        return
    _warnings.warn(
        f"the distribution dropblock {version} is installed too and shares this import name: "
        "`pip uninstall dropblock`, then install this one again",
        stacklevel=3,
    )


_warn_of_namesake()
