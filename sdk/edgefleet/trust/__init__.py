"""Trust: who holds which key, what is signed, and what a device checks before it believes anything.

It knows nothing of MQTT, of packages' content or of the server's store. Modules are imported one by one: each loads
`cryptography`, most of them `tuf`.
"""
