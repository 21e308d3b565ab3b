"""The wire contract shared with other languages: keys, scripts, replies, errors, pod states. Pure."""
