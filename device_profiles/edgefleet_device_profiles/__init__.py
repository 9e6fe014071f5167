"""What a device is: the schema of a profile, the catalogue of known boards, and detection of this machine."""
