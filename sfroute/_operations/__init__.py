"""What a call does: links are read and written, uids placed and moved, pods emptied."""
