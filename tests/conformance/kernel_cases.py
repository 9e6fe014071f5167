"""One case per TFLite operator for the kernel probe, from all families.

Makes none itself.
"""

from __future__ import annotations

from conformance.kernel_arithmetic import ARITHMETIC
from conformance.kernel_forms import Make
from conformance.kernel_movement import MOVEMENT
from conformance.kernel_products import PRODUCTS

MAKERS: dict[str, Make] = dict(sorted({**ARITHMETIC, **MOVEMENT, **PRODUCTS}.items()))
