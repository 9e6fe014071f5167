"""One model file for one runtime: what `edgefleet convert` does, from reading the source to the checked file.

Does not package, score or choose: that is `packaging`'s business.
"""
