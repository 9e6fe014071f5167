"""The wire format, in one place: topics, messages, and the broker's access rules generated from them."""
