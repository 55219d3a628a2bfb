"""Modules whose examples cannot be run here, as what they are made of is not installed."""

import importlib.util

_NEEDS = {"lightgbm": "_lightgbm.py", "xgboost": "_xgboost.py"}

collect_ignore = [
    f"hypersimplex_ext/boosting/{module}"
    for library, module in _NEEDS.items()
    if any(importlib.util.find_spec(name) is None for name in (library, "sklearn"))
]
