"""The coherence contract: how old an answer may be, whatever happens to servers, connections and callers."""
