"""celebctl: a person in 1024 numbers.

This package is the front desk (`celebctl.cli`) and the method (`celebctl.learning`). The rooms behind it are
`celebctl_models` (other people's networks), `celebctl_export` (networks to a bundle) and `celebctl_runtime`
(a bundle to pictures, torch-free). Importing this module imports none of them.
"""

__version__ = "0.1.0"
