"""Conversion steps, one module each, with one function `run(artefact, calibration, folder) -> Artefact`.

`calibration` is float32 [N, 1, *sample shape] in the source's layout; `folder` is the step's own and empty.
Each module imports its toolchain at the top, so only child processes import these modules.
"""
