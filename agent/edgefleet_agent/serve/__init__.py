"""The local API: the Open Inference Protocol, version 2, over HTTP/1.1 on this machine.

It runs no model and starts no process: whoever has a worker answers its requests.
"""
